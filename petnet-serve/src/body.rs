//! Response bodies, and the images that are submitted to the shadow model once a body is handed to hyper.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::shadow::{Samples, Shadow};

/// The body of a response: complete bytes, or a gRPC stream.
pub(crate) struct Body {
    content: tonic::body::Body,
    /// Images to submit to the shadow model once the body is handed to hyper.
    sampled: Option<(Arc<Shadow>, Samples)>,
}

impl Body {
    /// Adds images that are submitted to the shadow model once the body is handed to hyper.
    pub(crate) fn with_samples(mut self, shadow: Option<&Arc<Shadow>>, samples: Samples) -> Self {
        self.sampled = shadow.map(|shadow| (Arc::clone(shadow), samples));
        self
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        tonic::body::Body::new(Full::new(bytes)).into()
    }
}

impl From<tonic::body::Body> for Body {
    fn from(content: tonic::body::Body) -> Self {
        Self { content, sampled: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.content).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl Drop for Body {
    /// hyper drops a body once its last bytes are in the connection's write buffer.
    fn drop(&mut self) {
        if let Some((shadow, samples)) = self.sampled.take() {
            samples.submit(&shadow);
        }
    }
}
