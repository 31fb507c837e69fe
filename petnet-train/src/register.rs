//! `register`: a model as a version of a registered model on an MLflow server, from which services load it.

use anyhow::{Context as _, Result, bail};
use petnet::Checkpoint;
use petnet::mlflow::{DIGEST_TAG, ModelUri, ModelVersion, Server, VersionRef};
use serde_json::json;

use crate::model::ModelName;
use crate::terminal::Output;
use crate::tracking::{self, Run, Tracking};

/// Register a model on the MLflow server at MLFLOW_TRACKING_URI
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train register --model models/best.safetensors --alias champion --stage Production
  petnet-train register --run 019ab2 --alias challenger

A model replaces the champion, or moves to a stage, only if its accuracy on the same test images is at least as high
as the champion's. Run `petnet-train evaluate` first, which measures it. --force skips the comparison.")]
pub(crate) struct Register {
    /// Recorded run whose model is registered: its identifier or the beginning of it
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    run: Option<String>,
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: Option<ModelName>,
    /// Name of the registered model
    #[arg(long, default_value = "CatsDogsClassifier")]
    name: String,
    /// Alias to set on the version, e.g. champion
    #[arg(long)]
    alias: Option<String>,
    /// Stage to move the version to; versions in that stage are archived
    #[arg(long, value_parser = ["Staging", "Production", "Archived"])]
    stage: Option<String>,
    /// Register the model even if it is worse than the champion or was not compared with it
    #[arg(long)]
    force: bool,
}

/// Accuracy of a model on the test images with this digest.
#[derive(Debug, Clone, PartialEq)]
struct Evaluated {
    digest: String,
    accuracy: f64,
}

const TEST_DIGEST: &str = "petnet.test_digest";
const TEST_ACCURACY: &str = "petnet.test_accuracy";
/// Alias of the model that new versions are compared with.
const CHAMPION: &str = "champion";

impl Register {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let tracking = Tracking::required()?;
        let server = tracking.server()?;
        let run = self.find_run(&tracking)?;
        let models = run.models()?;
        let model = models.last().with_context(|| format!("run {} has no model", run.id()))?;
        let digest = model.tag(DIGEST_TAG).context("the model has no digest")?;
        let evaluated = evaluated(&run);
        let known = server.version_by_digest(&self.name, &digest)?;
        // A model may be registered without a comparison, but not as the champion or in a stage.
        let promoted = self.alias.as_deref() == Some(CHAMPION) || self.stage.is_some();
        if promoted && !self.force {
            self.compare(server, known.as_ref(), evaluated.as_ref())?;
        }
        let version = match known {
            Some(version) => version.version,
            None => {
                let remote = tracking::sync(&run, server)?;
                let id = remote.models.get(&model.meta.model_id);
                let id = id.context("the run's model was not sent to the server")?;
                server.register(&self.name, &remote.run_id, id, &digest)?
            }
        };
        if let Some(Evaluated { digest, accuracy }) = evaluated {
            server.set_version_tag(&self.name, &version, TEST_DIGEST, &digest)?;
            let accuracy = accuracy.to_string();
            server.set_version_tag(&self.name, &version, TEST_ACCURACY, &accuracy)?;
        }
        if let Some(stage) = &self.stage {
            server.set_stage(&self.name, &version, stage)?;
        }
        if let Some(alias) = &self.alias {
            server.set_alias(&self.name, &version, alias)?;
        }
        let uri = match &self.alias {
            Some(alias) => format!("models:/{}@{alias}", self.name),
            None => format!("models:/{}/{version}", self.name),
        };
        if output.json {
            let answer =
                json!({ "name": self.name, "version": version, "uri": uri, "sha256": digest });
            say!("{answer}");
        } else {
            say!("{} version {version} on {}", self.name, server.uri());
            say!("petnet-serve --model {uri}");
        }
        Ok(())
    }

    fn find_run(&self, tracking: &Tracking) -> Result<Run> {
        match (&self.run, &self.model) {
            (Some(id), _) => tracking.store.run(id),
            (None, model) => {
                let model = model.as_ref().unwrap_or(&ModelName::Bundled);
                let bytes = model.bytes()?;
                let checkpoint = Checkpoint::from_bytes(&bytes)?;
                let stem = match model {
                    ModelName::Bundled => "pretrained".into(),
                    ModelName::File(path) => path.file_stem().unwrap_or_default().to_string_lossy(),
                };
                tracking.run_with_model(&bytes, checkpoint.info(), &format!("register {stem}"))
            }
        }
    }

    /// Refuses a model that is worse than the champion, or that would replace it without a comparison.
    fn compare(
        &self,
        server: &Server,
        known: Option<&ModelVersion>,
        evaluated: Option<&Evaluated>,
    ) -> Result<()> {
        let uri = ModelUri { name: self.name.clone(), version: VersionRef::Alias(CHAMPION.into()) };
        let champion = match server.version(&uri) {
            Ok(version) => version,
            // MLflow reports a missing alias as an invalid value.
            Err(failure)
                if failure.is("RESOURCE_DOES_NOT_EXIST")
                    || failure.is("INVALID_PARAMETER_VALUE") =>
            {
                return Ok(());
            }
            Err(failure) => return Err(failure.into()),
        };
        if known.is_some_and(|known| known.version == champion.version) {
            return Ok(());
        }
        let number = &champion.version;
        let digest = champion.tag(TEST_DIGEST);
        let best = champion.tag(TEST_ACCURACY).and_then(|text| text.parse::<f64>().ok());
        match (evaluated, digest.zip(best)) {
            (Some(own), Some((digest, best))) if own.digest == digest => {
                if own.accuracy < best {
                    bail!(
                        "refused: accuracy {:.2} % is below the {:.2} % of the champion, version {number}, on the same test images (--force registers it anyway)",
                        own.accuracy * 100.0,
                        best * 100.0
                    );
                }
                Ok(())
            }
            _ => bail!(
                "refused: this model and the champion, version {number}, were not evaluated on the same test images; run `petnet-train evaluate` first, or --force"
            ),
        }
    }
}

fn evaluated(run: &Run) -> Option<Evaluated> {
    Some(Evaluated { digest: run.tag_value(TEST_DIGEST)?, accuracy: run.last("test_accuracy")? })
}
