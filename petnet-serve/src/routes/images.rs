//! The images of a request, and the model for them.

use std::sync::Arc;
use std::time::Instant;

use super::{HttpRequest, query_parameter};
use crate::app::App;
use crate::authorization::Priority;
use crate::models::RequestModel;
use crate::outputs::{Classification, ModelOutput};
use crate::problem::Problem;
use crate::upload::Upload;

/// The images of a request whose body was read completely.
pub(super) struct Images {
    pub(super) target: RequestModel,
    pub(super) upload: Upload,
    /// Time at which the request's body was complete.
    pub(super) received: Instant,
}

impl Images {
    /// Reads the request. Its model is that of the query parameter `model`, of the field `model` of its body, or the default.
    /// Errors: 404 for an unknown model, 503 where too many images wait for it, and those of
    /// [`Uploads::read`](crate::upload::Uploads::read).
    pub(super) async fn read(app: &Arc<App>, request: &mut HttpRequest) -> Result<Self, Problem> {
        let parameter = query_parameter(request.uri(), "model");
        let priority = priority(request);
        let mut target = app.target(parameter.as_deref(), priority)?;
        target.check_wait()?;
        let upload = app.uploads.read(request).await?;
        let received = Instant::now();
        match (&parameter, &upload.model) {
            (Some(parameter), Some(field)) if parameter != field => {
                let detail = format!("two models are named: `{parameter}` and `{field}`");
                return Err(Problem::bad_request(detail));
            }
            (None, Some(field)) => target = app.target(Some(field), priority)?,
            (Some(_) | None, _) => (),
        }
        Ok(Self { target, upload, received })
    }

    /// Reads a request with one image, and classifies the image.
    /// Errors: those of [`Images::read`]; 400 for several images, and the reason for which the image is refused.
    pub(super) async fn classify(
        app: &Arc<App>,
        request: &mut HttpRequest,
    ) -> Result<(Self, ModelOutput<Classification>), Problem> {
        let images = Self::read(app, request).await?;
        let output = app.batcher.classify(&images.target, images.upload.only_image()?).await?;
        Ok((images, output))
    }
}

/// The priority of the request's key.
pub(super) fn priority(request: &HttpRequest) -> Priority {
    request.extensions().get().copied().unwrap_or_default()
}
