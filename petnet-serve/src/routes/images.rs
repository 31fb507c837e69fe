//! A request's images, and the model that they go to.

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

/// The images of a request, read whole.
pub(super) struct Images {
    pub(super) target: Target,
    pub(super) upload: Upload,
    /// The time when the request's body was complete.
    pub(super) accepted: Instant,
}

impl Images {
    /// Reads the request, whose model is that of the parameter `model`, of the field `model` in its body, or the default one.
    ///
    /// # Errors
    /// 404 for a model that there is not, 503 where its line is too long, and those of [`Uploads::read`](crate::upload::Uploads).
    pub(super) async fn read(
        app: &Arc<App>,
        request: &mut Request<Incoming>,
    ) -> Result<Self, Problem> {
        let asked = query(request.uri(), "model");
        let priority = priority(request);
        let mut target = app.target(asked.as_deref(), priority)?;
        target.check_line()?;
        let upload = app.uploads.read(request, &app.settings).await?;
        let accepted = Instant::now();
        match (&asked, &upload.model) {
            (Some(asked), Some(field)) if asked != field => {
                let detail = format!("two models are named: `{asked}` and `{field}`");
                return Err(Problem::bad_request(detail));
            }
            (None, Some(field)) => target = app.target(Some(field), priority)?,
            (Some(_) | None, _) => (),
        }
        Ok(Self { target, upload, accepted })
    }
}

/// The urgency that the request's key gives it.
pub(super) fn priority<B>(request: &Request<B>) -> Priority {
    request.extensions().get().copied().unwrap_or_default()
}

/// The image of a request, and the outputs of the model on it.
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
