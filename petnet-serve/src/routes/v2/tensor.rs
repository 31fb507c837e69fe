//! Tensors of the Open Inference Protocol: JSON, or JSON followed by raw little-endian bytes.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::problem::Problem;

/// An inference request's JSON.
#[derive(Deserialize)]
pub(super) struct Request {
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) parameters: Map<String, Value>,
    pub(super) inputs: Vec<Input>,
    #[serde(default)]
    pub(super) outputs: Vec<Wanted>,
}

/// An output that the client asks for.
#[derive(Deserialize)]
pub(super) struct Wanted {
    pub(super) name: String,
    #[serde(default)]
    pub(super) parameters: Map<String, Value>,
}

#[derive(Deserialize)]
pub(super) struct Input {
    pub(super) name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Value>,
}

/// The values of an input.
pub(super) enum Values {
    /// `[n]` encoded photos.
    Bytes(Vec<Bytes>),
    /// `shape`, row by row.
    Floats { shape: Vec<usize>, values: Vec<f32> },
}

impl Request {
    /// Takes a body apart: `head` is the length of its JSON, where the client said so; zero means
    /// that all of it is one encoded photo, of the input that is called `only`.
    pub(super) fn parse(
        body: &Bytes,
        head: Option<usize>,
        only: &str,
    ) -> Result<(Self, Bytes), Problem> {
        let head = head.unwrap_or(body.len());
        if head > body.len() {
            return Err(Problem::bad_request("the body is shorter than its JSON is said to be"));
        }
        if head == 0 {
            // An element of BYTES begins with its length; a bare photo does not.
            let length = u32::try_from(body.len())
                .map_err(|_| Problem::too_large("more than 4 GiB"))?
                .to_le_bytes();
            let element: Bytes = [&length[..], body].concat().into();
            let size = element.len().into();
            let input = Input {
                name: only.into(),
                shape: vec![1],
                datatype: "BYTES".into(),
                parameters: Map::from_iter([("binary_data_size".into(), size)]),
                data: None,
            };
            let parameters = Map::from_iter([("binary_data_output".into(), true.into())]);
            return Ok((
                Self { id: None, parameters, inputs: vec![input], outputs: vec![] },
                element,
            ));
        }
        let request = serde_json::from_slice(&body[..head])
            .map_err(|error| Problem::bad_request(format!("no inference request: {error}")))?;
        Ok((request, body.slice(head..)))
    }
}

impl Input {
    /// The values, from the JSON or from the front of `binary`, which moves on; at most `most` of
    /// the first dimension.
    pub(super) fn values(&self, binary: &mut Bytes, most: usize) -> Result<Values, Problem> {
        let wrong = |what: &str| Problem::bad_request(format!("input `{}`: {what}", self.name));
        let shape: Option<Vec<usize>> =
            self.shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        let shape = shape.ok_or_else(|| wrong("a shape has no negative side"))?;
        if shape.first().is_some_and(|photos| *photos > most) {
            return Err(Problem::too_large(format!("more than {most} photos")));
        }
        let count = shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
        let count = count.ok_or_else(|| wrong("the shape is too large"))?;
        let size = self.parameters.get("binary_data_size").and_then(Value::as_u64);
        let raw = match size {
            Some(size) if size as usize > binary.len() => {
                return Err(wrong("there are fewer bytes than binary_data_size"));
            }
            Some(size) => Some(binary.split_to(size as usize)),
            None => None,
        };
        let data = self.data.as_ref();
        let values = match (self.datatype.as_str(), raw, data) {
            ("BYTES", Some(raw), _) => elements(raw).map(Values::Bytes),
            ("BYTES", None, Some(data)) => texts(data).map(Values::Bytes),
            ("FP32", Some(raw), _) => {
                let (values, rest) = raw.as_chunks();
                let values = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
                rest.is_empty().then_some(Values::Floats { shape, values })
            }
            ("FP32", None, Some(data)) => {
                let mut values = Vec::new();
                flatten(data, &mut values).then_some(Values::Floats { shape, values })
            }
            (_, None, None) => return Err(wrong("there is no data")),
            (other, ..) => return Err(wrong(&format!("datatype {other} is not taken"))),
        };
        let values = values.ok_or_else(|| wrong("the data is not of its datatype"))?;
        let seen = match &values {
            Values::Bytes(elements) => elements.len(),
            Values::Floats { values, .. } => values.len(),
        };
        if seen != count {
            return Err(wrong(&format!("{seen} values where the shape says {count}")));
        }
        Ok(values)
    }
}

/// Elements that begin with their length.
fn elements(mut raw: Bytes) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let length = u32::from_le_bytes(*raw.first_chunk()?) as usize;
        if raw.len() < 4 + length {
            return None;
        }
        elements.push(raw.slice(4..4 + length));
        raw = raw.slice(4 + length..);
    }
    Some(elements)
}

/// Base64 in JSON strings, which cannot carry a photo otherwise.
fn texts(data: &Value) -> Option<Vec<Bytes>> {
    match data {
        Value::Array(items) => {
            let parts: Option<Vec<Vec<Bytes>>> = items.iter().map(texts).collect();
            Some(parts?.concat())
        }
        Value::String(text) => Some(vec![crate::upload::from_base64(text).ok()?]),
        _ => None,
    }
}

/// Nested or flat numbers, row by row; whether they all were numbers.
fn flatten(data: &Value, into: &mut Vec<f32>) -> bool {
    match data {
        Value::Array(items) => items.iter().all(|item| flatten(item, into)),
        other => other.as_f64().map(|value| into.push(value as f32)).is_some(),
    }
}

/// An output tensor.
pub(super) struct Output {
    pub(super) name: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) values: Computed,
}

/// What was computed.
pub(super) enum Computed {
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

impl Output {
    /// Its JSON; `Some` bytes go behind all JSON, where the client wants them so.
    pub(super) fn write(&self, binary: bool) -> (Value, Option<Vec<u8>>) {
        let datatype = match self.values {
            Computed::Floats(_) => "FP32",
            Computed::Texts(_) => "BYTES",
        };
        let mut tensor = json!({ "name": self.name, "shape": self.shape, "datatype": datatype });
        if binary {
            let raw: Vec<u8> = match &self.values {
                Computed::Floats(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Computed::Texts(texts) => texts
                    .iter()
                    .flat_map(|text| {
                        let length = (text.len() as u32).to_le_bytes();
                        length.into_iter().chain(text.bytes())
                    })
                    .collect(),
            };
            tensor["parameters"] = json!({ "binary_data_size": raw.len() });
            return (tensor, Some(raw));
        }
        tensor["data"] = match &self.values {
            Computed::Floats(values) => json!(values),
            Computed::Texts(texts) => json!(texts),
        };
        (tensor, None)
    }
}
