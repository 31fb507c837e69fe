//! `smoke`: a smoke test of a deployed service: health, one prediction, one refusal, metrics, an unknown path.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::encode;
use crate::terminal::Output;

/// Test a running service: health, a prediction, a refusal, metrics; exits with 1 at the first failure
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train smoke https://petnet.example.org
  petnet-train smoke http://localhost:8000 --expect-model 1f6c5b0de5a1 --wait 2m")]
pub(crate) struct Smoke {
    /// URL of the service
    url: String,
    /// Version of petnet-serve that must be running
    #[arg(long)]
    expect_version: Option<String>,
    /// First digits of the SHA-256 of the model that must be loaded
    #[arg(long)]
    expect_model: Option<String>,
    /// API key, sent as `X-API-Key`
    #[arg(long, env = "PETNET_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Longest wait until the service is ready and runs the expected version and model
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    wait: Duration,
}

impl Smoke {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10)));
        let service = Service {
            agent: ureq::Agent::new_with_config(config.http_status_as_error(false).build()),
            url: self.url.trim_end_matches('/').to_string(),
            key: self.api_key.clone().unwrap_or_default(),
        };
        let began = Instant::now();
        let version = loop {
            match self.expected(&service) {
                Ok(version) => break version,
                Err(error) if began.elapsed() > self.wait => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        };
        let checks: [(&str, Check); 5] = [
            ("GET /health", health),
            ("POST /predict with an image", image),
            ("POST /predict with no image", no_image),
            ("GET /metrics", metrics),
            ("GET /nowhere", unknown_path),
        ];
        for (name, check) in checks {
            check(&service).with_context(|| format!("{name} at {}", service.url))?;
            if !output.json && !output.quiet {
                say!("ok  {name}");
            }
        }
        if output.json {
            say!("{}", json!({ "url": service.url, "version": version }));
        } else {
            let model = &version["model"];
            let (name, digits) = (model["name"].as_str(), model["version"].as_str());
            let (name, digits) = (name.unwrap_or_default(), digits.unwrap_or_default());
            say!("{} serves {name} {digits}", service.url);
        }
        Ok(())
    }

    /// Answer of `/version`, if the service is ready and runs the expected version and model.
    fn expected(&self, service: &Service) -> Result<Value> {
        let (status, _) = service.get("/readyz")?;
        ensure!(status == 200, "{} is not ready: {status}", service.url);
        let version = service.json("/version")?;
        if let Some(expected) = &self.expect_version {
            let runs = version["version"].as_str().unwrap_or_default();
            ensure!(runs == expected, "version {runs} runs, not {expected}");
        }
        if let Some(expected) = &self.expect_model {
            let runs = version["model"]["sha256"].as_str().unwrap_or_default();
            ensure!(runs.starts_with(expected.as_str()), "model {runs} runs, not {expected}");
        }
        Ok(version)
    }
}

type Check = fn(&Service) -> Result<()>;

/// A running service.
struct Service {
    agent: ureq::Agent,
    url: String,
    key: String,
}

impl Service {
    fn get(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.url);
        let mut reply = self.agent.get(&url).header("x-api-key", &self.key).call().context(url)?;
        Ok((reply.status().as_u16(), reply.body_mut().read_to_string()?))
    }

    fn json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get(path)?;
        ensure!(status == 200, "{path} answers {status}");
        Ok(serde_json::from_str(&body)?)
    }

    fn predict(&self, image: &[u8]) -> Result<(u16, Value)> {
        let url = format!("{}/predict", self.url);
        let request = self.agent.post(&url).header("x-api-key", &self.key);
        let mut reply = request.content_type("image/png").send(image).context(url)?;
        Ok((reply.status().as_u16(), serde_json::from_str(&reply.body_mut().read_to_string()?)?))
    }
}

fn health(service: &Service) -> Result<()> {
    let health = service.json("/health")?;
    ensure!(health["status"] == "healthy" && health["model_loaded"] == true, "{health}");
    Ok(())
}

fn image(service: &Service) -> Result<()> {
    let pixels = RgbImage::from_fn(64, 48, |x, y| Rgb([(x * 4) as u8, (y * 5) as u8, 90]));
    let (status, answer) = service.predict(&encode::png(&pixels, 64, 48)?)?;
    ensure!(status == 200, "{status}: {answer}");
    let Some(probabilities) = answer["probabilities"].as_object() else {
        bail!("no probabilities in {answer}");
    };
    let sum: f64 = probabilities.values().filter_map(Value::as_f64).sum();
    ensure!((sum - 1.0).abs() < 1e-3, "the probabilities sum to {sum}");
    let label = answer["predicted_class"].as_str().unwrap_or_default();
    ensure!(probabilities.contains_key(label), "`{label}` is none of the classes");
    Ok(())
}

fn no_image(service: &Service) -> Result<()> {
    let (status, answer) = service.predict(b"no image")?;
    ensure!(status == 400 && answer["detail"].is_string(), "{status}: {answer}");
    Ok(())
}

fn metrics(service: &Service) -> Result<()> {
    let (status, text) = service.get("/metrics")?;
    ensure!(status == 200 && text.contains("prediction_requests_total{"), "{status}");
    Ok(())
}

fn unknown_path(service: &Service) -> Result<()> {
    let (status, _) = service.get("/nowhere")?;
    ensure!(status == 404, "{status}");
    Ok(())
}
