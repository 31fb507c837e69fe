//! Other classes than cats and dogs: five drawn shapes, from folders of images to the responses of the service.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::Server;
use image::{Rgb, RgbImage};
use petnet::arch::{Architecture, SimpleCnnConfig};
use petnet::augment::Augment;
use petnet::{Calibration, Dataset, Precision, Trainer};
use serde_json::json;

const SHAPES: [&str; 5] = ["circle", "cross", "ring", "square", "triangle"];

fn draw(shape: usize, number: u32) -> RgbImage {
    let (middle, size) = (16.0 + (number % 3) as f32 - 1.0, 8.0 + (number % 4) as f32);
    RgbImage::from_fn(32, 32, |x, y| {
        let (x, y) = ((x as f32 - middle) / size, (y as f32 - middle) / size);
        let far = (x * x + y * y).sqrt();
        let inside = match shape {
            0 => far < 1.0,
            1 => x.abs().min(y.abs()) < 0.25 && x.abs().max(y.abs()) < 1.0,
            2 => (0.6..1.0).contains(&far),
            3 => x.abs().max(y.abs()) < 1.0,
            _ => y < 0.9 && y > 2.0 * x.abs() - 1.0,
        };
        let light = if inside { 220 - number as u8 } else { 40 + number as u8 };
        Rgb([light, light, 255 - light])
    })
}

fn trained(folder: &Path) -> std::path::PathBuf {
    for (shape, name) in SHAPES.iter().enumerate() {
        let class = folder.join("photos").join(name);
        std::fs::create_dir_all(&class).unwrap();
        for number in 0..16 {
            draw(shape, number).save(class.join(format!("{number}.png"))).unwrap();
        }
    }
    let dataset = Dataset::open(folder.join("photos")).unwrap();
    let channels = vec![8, 16];
    let trainer = Trainer {
        architecture: Architecture::new(SimpleCnnConfig { channels, hidden: 32, dropout: 0.0 }),
        image_size: 32,
        epochs: 40,
        batch_size: 16,
        learning_rate: 1e-2,
        ema_decay: 0.0,
        augment: Augment::none(),
        ..Trainer::default()
    };
    let model = folder.join("shapes.safetensors");
    let fitted = trainer.fit(&dataset, &dataset).unwrap();
    let best = fitted.best.calibrated(&dataset, &dataset, &Calibration::default()).unwrap();
    best.save(&model, Precision::F32).unwrap();
    model
}

#[test]
fn five_shapes_are_learned_and_named_in_every_response() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(folder.path());
    let store = folder.path().join("feedback");
    let files = ["--model", model.to_str().unwrap(), "--feedback", store.to_str().unwrap()];
    let server = Server::start(&files);
    assert_eq!(server.get("/version").json()["model"]["classes"], json!(SHAPES));
    let mut right = 0;
    for (shape, name) in SHAPES.iter().enumerate() {
        let mut png = std::io::Cursor::new(Vec::new());
        draw(shape, 5).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let image = png.into_inner();
        let answer = server.post("/predict", &[("content-type", "image/png")], &image).json();
        let names: Vec<&String> = answer["probabilities"].as_object().unwrap().keys().collect();
        assert_eq!(names, SHAPES);
        right += usize::from(answer["predicted_class"] == *name);
        let given = json!({ "prediction_id": answer["prediction_id"], "label": name });
        assert_eq!(server.post_json("/feedback", &given).0, 200);
    }
    assert!(right >= 4, "{right} of 5");
    let metrics = server.metrics();
    assert!(metrics.contains_key("model_recall{class=\"ring\",model=\"shapes\",window=\"1h\"}"));
    out_of_distribution_images_are_unsure(&server);
    let metadata = server.get("/v2/models/shapes").json();
    assert_eq!(metadata["outputs"][0]["shape"], json!([-1, 5]));
}

/// The network has no source head: its out-of-distribution score is the distance to prototypes of the shapes, which is large
/// for noise.
fn out_of_distribution_images_are_unsure(server: &Server) {
    let ood = &server.get("/version").json()["model"]["ood"];
    assert_eq!(ood["score"], "prototypes");
    let noise = RgbImage::from_fn(48, 48, |x, y| {
        let mixed = (x * 48 + y + 1).wrapping_mul(2_654_435_761);
        Rgb([(mixed >> 24) as u8, (mixed >> 13) as u8, (mixed >> 5) as u8])
    });
    let mut png = std::io::Cursor::new(Vec::new());
    noise.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let answer =
        server.post("/predict", &[("content-type", "image/png")], &png.into_inner()).json();
    assert_eq!(
        (&answer["decision"], &answer["reason"]),
        (&json!("unsure"), &json!("out_of_distribution"))
    );
    let message = "This does not look like any of the 5 classes that the model knows.";
    assert_eq!(answer["message"], message);
    assert!(answer["ood_score"].as_f64() > ood["threshold"].as_f64(), "{answer}");
    let metrics = server.metrics();
    let mut counts = metrics.iter().filter(|(series, _)| {
        series.starts_with("prediction_decisions_total{decision=\"out_of_distribution\"")
    });
    assert!(counts.any(|(_, count)| *count >= 1.0));
}
