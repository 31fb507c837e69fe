//! Tensors of the Open Inference Protocol: JSON, or JSON followed by raw little-endian bytes.

use bytes::Bytes;
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::problem::Problem;

/// Maximum bytes of parsed values per byte of JSON: 3 for a string with escapes, in serde's buffer, whose capacity doubles, and
/// in its copy; 2 for numbers, as `1,` is a float of 4.
pub(super) const PARSED_BYTES_PER_JSON_BYTE: usize = 3;
/// Maximum bytes of all other lists together, which [`MAX_LIST_BYTES`] and [`MAX_TEXTS`] limit: `0,` is a dimension of 8,
/// `{"name":""},` an output of 48, and `"",` a string of 24, in vectors whose old and doubled allocation exist together.
pub(super) const MAX_LISTS_MEMORY: usize = 160 << 10;
/// Maximum length of the JSON of a shape and of the requested outputs, in bytes.
const MAX_LIST_BYTES: usize = 4096;
/// Maximum number of strings in an input.
const MAX_TEXTS: usize = 1024;

/// An inference request's JSON.
#[derive(Deserialize)]
pub(crate) struct Request {
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) parameters: RequestParameters,
    /// The only input.
    pub(crate) inputs: [Input; 1],
    #[serde(default, deserialize_with = "short_list")]
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
    #[serde(deserialize_with = "short_list")]
    pub(crate) shape: Vec<i64>,
    pub(crate) datatype: String,
    #[serde(default)]
    pub(crate) parameters: InputParameters,
    pub(crate) data: Option<Data>,
}

#[derive(Default, Deserialize)]
pub(crate) struct InputParameters {
    /// Length of the values in bytes, where they are raw bytes after the JSON or in gRPC's `raw_input_contents`.
    pub(crate) binary_data_size: Option<u64>,
}

/// Values of a JSON array, nested or flat, in row-major order. They are parsed into flat lists: a tree of `serde_json::Value`
/// would need many times the memory of the body.
pub(crate) struct Data {
    numbers: Vec<f32>,
    texts: Vec<String>,
    /// Encoded images that are not in JSON.
    elements: Vec<Bytes>,
}

impl Data {
    /// Values that are not in JSON.
    pub(crate) fn new(numbers: Vec<f32>, elements: Vec<Bytes>) -> Self {
        Self { numbers, texts: Vec::new(), elements }
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(from)?.get();
        let mut data = Self::new(Vec::new(), Vec::new());
        if !json.contains('"') {
            // At once, as growing copies; a number of a list takes at least two bytes. Unused memory is not resident.
            data.numbers.reserve_exact(json.len() / 2 + 1);
        }
        let mut from = serde_json::Deserializer::from_str(json);
        DataVisitor(&mut data).deserialize(&mut from).map_err(Error::custom)?;
        Ok(data)
    }
}

/// Parses a list whose JSON is short: in memory, a list may have many times the size of its JSON.
fn short_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let json = <&RawValue>::deserialize(from)?.get();
    if json.len() > MAX_LIST_BYTES {
        return Err(Error::custom(format!("a list has more than {MAX_LIST_BYTES} bytes")));
    }
    serde_json::from_str(json).map_err(Error::custom)
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

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        // The capacity is 0 where there are strings.
        if self.0.numbers.len() == self.0.numbers.capacity() {
            return Err(E::custom("numbers and strings are mixed"));
        }
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        if self.0.texts.len() == MAX_TEXTS {
            return Err(E::custom(format!("more than {MAX_TEXTS} strings")));
        }
        self.0.texts.push(value.into());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(DataVisitor(self.0))?.is_some() {}
        Ok(())
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
            let input = Input {
                name: input_name.into(),
                shape: vec![1],
                datatype: "BYTES".into(),
                parameters: InputParameters::default(),
                data: Some(Data::new(Vec::new(), vec![body.clone()])),
            };
            let parameters = RequestParameters { binary_data_output: Some(true) };
            let request = Self { id: None, parameters, inputs: [input], outputs: vec![] };
            return Ok((request, Bytes::new()));
        }
        let request = serde_json::from_slice(&body[..json_len]).map_err(|error| {
            Problem::bad_request(format!("the inference request is invalid: {error}"))
        })?;
        Ok((request, body.slice(json_len..)))
    }
}

impl Input {
    /// Takes the values from the input, or from the front of `binary`, which advances past them. The first dimension is at most
    /// `max_images`.
    pub(crate) fn take_values(
        &mut self,
        binary: &mut Bytes,
        max_images: usize,
    ) -> Result<Values, Problem> {
        let name = &self.name;
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
        let values = match (self.datatype.as_str(), raw, self.data.take()) {
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
