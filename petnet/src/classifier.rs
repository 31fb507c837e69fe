//! The front door for those who only want an answer: bytes, a path or a batch -> [`Prediction`].

use std::fmt;
use std::path::Path;

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData};

use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::metrics::argmax;
use crate::model::Network;
use crate::preprocess::{Limits, Pixels};

/// A trained network with all that it needs to read photos; share it between threads freely.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// # let mut photo = std::io::Cursor::new(Vec::new());
/// # image::RgbImage::from_pixel(8, 8, image::Rgb([90, 60, 30])).write_to(&mut photo, image::ImageFormat::Png).unwrap();
/// # let photo = photo.into_inner();
/// let classifier = petnet::Classifier::pretrained()?;
/// let guess = classifier.classify_bytes(&photo)?;
/// println!("{} {:.2}", guess.label(), guess.confidence());
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug)]
pub struct Classifier {
    info: ModelInfo,
    network: Network,
    device: burn::tensor::Device,
    limits: Limits,
    parameters: usize,
}

impl Classifier {
    /// The cat-or-dog network that ships inside the crate, on the CPU.
    ///
    /// # Errors
    /// None in a sound build; a damaged build answers [`Error::Checkpoint`].
    #[cfg(feature = "pretrained")]
    pub fn pretrained() -> Result<Self> {
        Self::new(Checkpoint::pretrained()?, Device::Cpu)
    }

    /// A model from a file, on the CPU.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Checkpoint::load(path)?, Device::Cpu)
    }

    /// A model on a device of your choice.
    ///
    /// # Errors
    /// [`Error::Device`] when the device cannot be had, [`Error::Checkpoint`] when the weights do
    /// not fit the architecture.
    pub fn new(checkpoint: Checkpoint, device: Device) -> Result<Self> {
        let device = device.open()?;
        let parameters = checkpoint.parameters();
        let (info, network) = checkpoint.network(&device)?;
        Ok(Self { info, network, device, limits: Limits::default(), parameters })
    }

    /// Replaces the bounds on what is decoded.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// What the model says about itself.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Number of stored values, batch-norm statistics included.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Class names in the order of [`Prediction::probabilities`].
    pub fn labels(&self) -> &[String] {
        &self.info.labels
    }

    /// Classifies a photo on disk.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::ImageFile`], both naming the path.
    pub fn classify_path(&self, path: impl AsRef<Path>) -> Result<Prediction> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let pixels = self.preprocess(&bytes).map_err(|e| match e {
            Error::Image(source) => Error::ImageFile { path: path.into(), source },
            other => other,
        })?;
        self.classify_one(pixels)
    }

    /// Classifies an encoded photo (JPEG, PNG, WebP, GIF or BMP).
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn classify_bytes(&self, bytes: &[u8]) -> Result<Prediction> {
        self.classify_one(self.preprocess(bytes)?)
    }

    /// Classifies many photos in one pass through the network; a photo that cannot be read fails
    /// alone. Answers come in the order of the photos.
    pub fn classify_batch<B: AsRef<[u8]>>(&self, photos: &[B]) -> Vec<Result<Prediction>> {
        let (good, mut answers): (Vec<_>, Vec<_>) = photos
            .iter()
            .map(|photo| match self.preprocess(photo.as_ref()) {
                Ok(pixels) => (Some(pixels), None),
                Err(error) => (None, Some(Err(error))),
            })
            .unzip();
        let pixels: Vec<Pixels> = good.into_iter().flatten().collect();
        let mut predictions = match self.classify_pixels(&pixels) {
            Ok(predictions) => predictions.into_iter(),
            Err(error) => {
                let reason = error.to_string();
                return photos.iter().map(|_| Err(Error::Device(reason.clone()))).collect();
            }
        };
        answers
            .iter_mut()
            .map(|answer| answer.take().or_else(|| predictions.next().map(Ok)))
            .map(|answer| {
                answer.unwrap_or_else(|| Err(Error::Device("an answer is missing".into())))
            })
            .collect()
    }

    /// Decodes and resizes one photo to what [`Classifier::classify_pixels`] takes.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn preprocess(&self, bytes: &[u8]) -> Result<Pixels> {
        Ok(self.info.preprocess.run(bytes, &self.limits)?)
    }

    /// Classifies pictures that [`Classifier::preprocess`] made.
    ///
    /// # Errors
    /// [`Error::Config`] when a picture has another size than the model's,
    /// [`Error::Device`] when the device fails.
    pub fn classify_pixels(&self, pictures: &[Pixels]) -> Result<Vec<Prediction>> {
        pictures.iter().try_for_each(|picture| self.check_size(picture))?;
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: Vec<u8> = pictures.iter().flat_map(Pixels::data).copied().collect();
        let size = self.info.preprocess.size as usize;
        let images = to_tensor(bytes, pictures.len(), size, &self.device); // [n, 3, s, s]
        let features = self.network.features(images); // [n, width]
        let answers = answers(&self.network, features, self.info.temperature)?;
        Ok(answers.into_iter().map(|answer| self.prediction(answer)).collect())
    }

    pub(crate) fn check_size(&self, picture: &Pixels) -> Result<()> {
        let (size, width, height) = (self.info.preprocess.size, picture.width(), picture.height());
        if (width, height) == (size, size) {
            return Ok(());
        }
        Err(Error::Config(format!(
            "a picture is {width} x {height}, the model takes {size} x {size}"
        )))
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn device(&self) -> &burn::tensor::Device {
        &self.device
    }

    fn classify_one(&self, pixels: Pixels) -> Result<Prediction> {
        let mut one = self.classify_pixels(std::slice::from_ref(&pixels))?;
        one.pop().ok_or_else(|| Error::Device("an answer is missing".into()))
    }

    pub(crate) fn prediction(&self, Answer { probabilities, features }: Answer) -> Prediction {
        let index = argmax(&probabilities);
        let mut prediction = Prediction::new(self.info.labels[index].clone(), index, probabilities);
        if let Some(novelty) = &self.info.novelty {
            let distance = novelty.distance(&features);
            prediction.novelty = Some(distance);
            prediction.familiar = novelty.is_familiar(distance);
        }
        prediction.sure = prediction.familiar && prediction.confidence() >= self.info.threshold;
        prediction
    }
}

/// What a network says about one picture.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) probabilities: Vec<f32>,
    pub(crate) features: Vec<f32>,
}

/// The answers for `features`, `[n, width]`.
pub(crate) fn answers(
    network: &Network,
    features: Tensor<2>,
    temperature: f32,
) -> Result<Vec<Answer>> {
    let logits = network.classify(features.clone()); // [n, classes]
    let probabilities = rows(softmax(logits / temperature, 1))?;
    let pairs = probabilities.into_iter().zip(rows(features)?);
    Ok(pairs.map(|(probabilities, features)| Answer { probabilities, features }).collect())
}

/// `[n, m]` -> a vector a row.
pub(crate) fn rows(tensor: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [_, columns] = tensor.dims();
    Ok(numbers(tensor)?.chunks(columns.max(1)).map(<[f32]>::to_vec).collect())
}

/// `[n, size, size, 3]` bytes -> `[n, 3, size, size]` floats of 0 to 255 on the device.
pub(crate) fn to_tensor(
    bytes: Vec<u8>,
    count: usize,
    size: usize,
    device: &burn::tensor::Device,
) -> Tensor<4> {
    let data = TensorData::new(bytes, [count, size, size, 3]).convert::<f32>();
    Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
}

/// A tensor's values, in order.
pub(crate) fn numbers<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().map_err(|e| Error::Device(e.to_string()))?;
    data.try_into_vec_as::<f32>().map_err(|e| Error::Device(format!("{e:?}")))
}

/// The answer for one photo. Displays as `dog (98 %)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    label: String,
    index: usize,
    probabilities: Vec<f32>,
    novelty: Option<f32>,
    familiar: bool,
    sure: bool,
}

impl Prediction {
    pub(crate) fn new(label: String, index: usize, probabilities: Vec<f32>) -> Self {
        Self { label, index, probabilities, novelty: None, familiar: true, sure: true }
    }

    /// Name of the likeliest class.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its place among [`Classifier::labels`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its probability, 0 to 1.
    pub fn confidence(&self) -> f32 {
        self.probabilities[self.index]
    }

    /// How far the photo is from those that the model knows, see [`Novelty::distance`]; absent
    /// where the model never learned it.
    ///
    /// [`Novelty::distance`]: crate::Novelty::distance
    pub fn novelty(&self) -> Option<f32> {
        self.novelty
    }

    /// Whether the photo is like those that the model knows.
    pub fn is_familiar(&self) -> bool {
        self.familiar
    }

    /// Whether the photo is familiar and the confidence reaches [`ModelInfo::threshold`].
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// One probability a class; they sum to 1.
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounding down keeps "100 %" for the certain.
        write!(f, "{} ({:.0} %)", self.label, (self.confidence() * 100.0).floor())
    }
}
