//! The images of a request, and the model for them.

use std::sync::Arc;
use std::time::Instant;

use hyper::Request;
use hyper::body::Incoming;

use super::query;
use crate::app::App;
use crate::models::Target;
use crate::outputs::{Answer, Classified};
use crate::problem::Problem;
use crate::standing::Priority;
use crate::upload::Upload;

/// The images of a request whose body was read completely.
pub(super) struct Images {
    pub(super) target: Target,
    pub(super) upload: Upload,
    /// Time at which the request's body was complete.
    pub(super) accepted: Instant,
}

impl Images {
    /// Reads the request. Its model is that of the query parameter `model`, of the field `model` of its body, or the default.
    ///
    /// # Errors
    /// 404 for an unknown model, 503 where too many images wait for it, and those of
    /// [`Uploads::read`](crate::upload::Uploads::read).
    pub(super) async fn read(
        app: &Arc<App>,
        request: &mut Request<Incoming>,
    ) -> Result<Self, Problem> {
        let parameter = query(request.uri(), "model");
        let priority = priority(request);
        let mut target = app.target(parameter.as_deref(), priority)?;
        target.check_wait()?;
        let upload = app.uploads.read(request, &app.settings).await?;
        let accepted = Instant::now();
        match (&parameter, &upload.model) {
            (Some(parameter), Some(field)) if parameter != field => {
                let detail = format!("two models are named: `{parameter}` and `{field}`");
                return Err(Problem::bad_request(detail));
            }
            (None, Some(field)) => target = app.target(Some(field), priority)?,
            (Some(_) | None, _) => (),
        }
        Ok(Self { target, upload, accepted })
    }
}

/// The priority of the request's key.
pub(super) fn priority<B>(request: &Request<B>) -> Priority {
    request.extensions().get().copied().unwrap_or_default()
}

/// A request with one image, and the model's output for it.
pub(super) struct Single {
    pub(super) images: Images,
    pub(super) answer: Answer<Classified>,
}

impl Single {
    /// # Errors
    /// Those of [`Images::read`]; 400 for several images, and the reason for which the image is refused.
    pub(super) async fn classify(
        app: &Arc<App>,
        request: &mut Request<Incoming>,
    ) -> Result<Self, Problem> {
        let images = Images::read(app, request).await?;
        let answer = app.batcher.classify(&images.target, images.upload.only()?).await?;
        Ok(Self { images, answer })
    }
}
