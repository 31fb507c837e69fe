//! Tensors of the Open Inference Protocol: JSON, or JSON followed by raw little-endian bytes.

use bytes::Bytes;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::problem::Problem;

/// An inference request's JSON.
#[derive(Deserialize)]
pub(crate) struct Request {
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) parameters: RequestParameters,
    pub(crate) inputs: Vec<Input>,
    #[serde(default)]
    pub(crate) outputs: Vec<RequestedOutput>,
}

#[derive(Default, Deserialize)]
pub(crate) struct RequestParameters {
    pub(crate) binary_data_output: Option<bool>,
}

/// An output that a request names.
#[derive(Clone, Deserialize)]
pub(crate) struct RequestedOutput {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) parameters: OutputParameters,
}

#[derive(Clone, Default, Deserialize)]
pub(crate) struct OutputParameters {
    pub(crate) binary_data: Option<bool>,
    /// Number of classes to return, the most likely first.
    pub(crate) classification: Option<u64>,
}

#[derive(Deserialize)]
pub(crate) struct Input {
    pub(crate) name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: InputParameters,
    data: Option<Data>,
}

#[derive(Default, Deserialize)]
struct InputParameters {
    binary_data_size: Option<u64>,
}

/// Values of a JSON array, nested or flat, in row-major order. They are parsed into flat lists: a tree of `serde_json::Value`
/// would need many times the memory of the body.
#[derive(Default)]
struct Data {
    numbers: Vec<f32>,
    texts: Vec<String>,
    /// Raw bytes, from gRPC only.
    elements: Vec<Bytes>,
}

/// The values of a gRPC input.
pub(crate) enum Contents {
    /// Length in bytes of the values in `raw_input_contents`.
    Raw(usize),
    Floats(Vec<f32>),
    Elements(Vec<Bytes>),
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        DataVisitor(&mut data).deserialize(from)?;
        Ok(data)
    }
}

/// Parses one level of nested arrays into [`Data`].
struct DataVisitor<'a>(&'a mut Data);

impl<'de> DeserializeSeed<'de> for DataVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DataVisitor<'_> {
    type Value = ();

    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("numbers or strings, nested or flat")
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.0.texts.push(value.into());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(DataVisitor(self.0))?.is_some() {}
        if self.0.numbers.is_empty() || self.0.texts.is_empty() {
            Ok(())
        } else {
            Err(A::Error::custom("numbers and strings are mixed"))
        }
    }
}

/// The values of an input.
pub(crate) enum Values {
    /// Encoded images, `[n]`.
    Bytes(Vec<Bytes>),
    /// A tensor in row-major order.
    Floats { shape: Vec<usize>, values: Vec<f32> },
}

impl Request {
    /// Parses a body into its JSON and the raw bytes after it. `json_len` is the length of the JSON where the client sent it; 0
    /// means that the body is one encoded image, for the input named `input_name`.
    pub(crate) fn parse(
        body: &Bytes,
        json_len: Option<usize>,
        input_name: &str,
    ) -> Result<(Self, Bytes), Problem> {
        let json_len = json_len.unwrap_or(body.len());
        if json_len > body.len() {
            let detail = "the body is shorter than Inference-Header-Content-Length";
            return Err(Problem::bad_request(detail));
        }
        if json_len == 0 {
            // An element of BYTES begins with its length; a raw image does not.
            let length = u32::try_from(body.len())
                .map_err(|_| Problem::too_large("more than 4 GiB"))?
                .to_le_bytes();
            let element: Bytes = [&length[..], body].concat().into();
            let size = Some(element.len() as u64);
            let input = Input {
                name: input_name.into(),
                shape: vec![1],
                datatype: "BYTES".into(),
                parameters: InputParameters { binary_data_size: size },
                data: None,
            };
            let parameters = RequestParameters { binary_data_output: Some(true) };
            return Ok((
                Self { id: None, parameters, inputs: vec![input], outputs: vec![] },
                element,
            ));
        }
        let request = serde_json::from_slice(&body[..json_len]).map_err(|error| {
            Problem::bad_request(format!("the inference request is invalid: {error}"))
        })?;
        Ok((request, body.slice(json_len..)))
    }
}

impl Input {
    /// A gRPC input.
    pub(crate) fn new(
        name: String,
        (datatype, shape): (String, Vec<i64>),
        contents: Contents,
    ) -> Self {
        let (size, data) = match contents {
            Contents::Raw(length) => (Some(length as u64), None),
            Contents::Floats(numbers) => (None, Some(Data { numbers, ..Data::default() })),
            Contents::Elements(elements) => (None, Some(Data { elements, ..Data::default() })),
        };
        let parameters = InputParameters { binary_data_size: size };
        Self { name, shape, datatype, parameters, data }
    }

    /// The values, from the JSON or from the front of `binary`, which advances past them. The first dimension is at most
    /// `max_images`.
    pub(crate) fn values(self, binary: &mut Bytes, max_images: usize) -> Result<Values, Problem> {
        let name = self.name;
        let wrong = |detail: &str| Problem::bad_request(format!("input `{name}`: {detail}"));
        let shape: Option<Vec<usize>> =
            self.shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        let shape = shape.ok_or_else(|| wrong("a dimension of the shape is negative"))?;
        if shape.first().is_some_and(|images| *images > max_images) {
            return Err(Problem::too_large(format!("more than {max_images} images")));
        }
        let count = shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
        let count = count.ok_or_else(|| wrong("the shape is too large"))?;
        if self.datatype == "BYTES" && count > max_images {
            return Err(Problem::too_large(format!("more than {max_images} images")));
        }
        let raw = match self.parameters.binary_data_size {
            Some(size) if size as usize > binary.len() => {
                return Err(wrong("there are fewer bytes than binary_data_size"));
            }
            Some(size) => Some(binary.split_to(size as usize)),
            None => None,
        };
        let values = match (self.datatype.as_str(), raw, self.data) {
            ("BYTES", Some(raw), _) => elements(raw, count).map(Values::Bytes),
            ("BYTES", None, Some(data)) if !data.elements.is_empty() => {
                Some(Values::Bytes(data.elements))
            }
            ("BYTES", None, Some(data)) if data.numbers.is_empty() => {
                // JSON strings carry encoded images in base64.
                let images = data.texts.iter().map(|text| crate::upload::from_base64(text));
                Some(Values::Bytes(images.collect::<Result<_, _>>()?))
            }
            ("FP32", Some(raw), _) => {
                let (values, rest) = raw.as_chunks();
                let values = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
                rest.is_empty().then_some(Values::Floats { shape, values })
            }
            ("FP32", None, Some(data)) if data.texts.is_empty() && data.elements.is_empty() => {
                Some(Values::Floats { shape, values: data.numbers })
            }
            ("BYTES" | "FP32", None, Some(_)) => None,
            (_, None, None) => return Err(wrong("there is no data")),
            (other, ..) => return Err(wrong(&format!("datatype {other} is not supported"))),
        };
        let values = values.ok_or_else(|| wrong("the data is not of its datatype"))?;
        let length = match &values {
            Values::Bytes(elements) => elements.len(),
            Values::Floats { values, .. } => values.len(),
        };
        if length != count {
            return Err(wrong(&format!("{length} values, the shape has {count}")));
        }
        Ok(values)
    }
}

/// Splits raw BYTES into elements, each after its length (u32, little-endian). Returns at most one more than
/// `max_count`.
fn elements(mut raw: Bytes, max_count: usize) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    while !raw.is_empty() && elements.len() <= max_count {
        let length = u32::from_le_bytes(*raw.first_chunk()?) as usize;
        if raw.len() < 4 + length {
            return None;
        }
        elements.push(raw.slice(4..4 + length));
        raw = raw.slice(4 + length..);
    }
    Some(elements)
}

/// An output tensor.
pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: OutputValues,
}

/// Values of an output tensor.
pub(crate) enum OutputValues {
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

impl Output {
    pub(crate) fn datatype(&self) -> &'static str {
        match self.values {
            OutputValues::Floats(_) => "FP32",
            OutputValues::Texts(_) => "BYTES",
        }
    }

    /// The values in little-endian bytes; each text follows its length (u32).
    pub(crate) fn raw(&self) -> Vec<u8> {
        match &self.values {
            OutputValues::Floats(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            OutputValues::Texts(texts) => texts
                .iter()
                .flat_map(|text| {
                    let length = (text.len() as u32).to_le_bytes();
                    length.into_iter().chain(text.bytes())
                })
                .collect(),
        }
    }

    /// The tensor's JSON; where `binary` is true, with its values as raw bytes instead, to be sent after the JSON.
    pub(crate) fn write(&self, binary: bool) -> (Value, Option<Vec<u8>>) {
        let datatype = self.datatype();
        let mut tensor = json!({ "name": self.name, "shape": self.shape, "datatype": datatype });
        if binary {
            let raw = self.raw();
            tensor["parameters"] = json!({ "binary_data_size": raw.len() });
            return (tensor, Some(raw));
        }
        tensor["data"] = match &self.values {
            OutputValues::Floats(values) => json!(values),
            OutputValues::Texts(texts) => json!(texts),
        };
        (tensor, None)
    }
}
