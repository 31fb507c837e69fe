//! Response bodies: complete ones, and gRPC streams.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::shadow::{Samples, Shadow};

/// The body of a response.
pub(crate) struct Body {
    content: Content,
    /// Images to submit to the shadow model once the body is sent.
    sampled: Option<(Arc<Shadow>, Samples)>,
}

enum Content {
    Whole(Full<Bytes>),
    Stream(tonic::body::Body),
}

impl Body {
    /// Adds images that are submitted to the shadow model once the body is sent.
    pub(crate) fn with_samples(mut self, shadow: Option<&Arc<Shadow>>, samples: Samples) -> Self {
        self.sampled = shadow.map(|shadow| (Arc::clone(shadow), samples));
        self
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { content: Content::Whole(Full::new(bytes)), sampled: None }
    }
}

impl From<tonic::body::Body> for Body {
    fn from(stream: tonic::body::Body) -> Self {
        Self { content: Content::Stream(stream), sampled: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match &mut self.content {
            Content::Whole(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never: Infallible| match never {}))),
            Content::Stream(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(body) => body.is_end_stream(),
            Content::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(body) => body.size_hint(),
            Content::Stream(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    /// hyper drops a body once it has written it.
    fn drop(&mut self) {
        if let Some((shadow, samples)) = self.sampled.take() {
            samples.submit(&shadow);
        }
    }
}
