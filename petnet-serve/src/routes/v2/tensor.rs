//! Tensors of the Open Inference Protocol: JSON, or JSON followed by raw little-endian bytes.

use bytes::Bytes;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::problem::Problem;

/// An inference request's JSON.
#[derive(Deserialize)]
pub(in crate::routes) struct Request {
    pub(in crate::routes) id: Option<String>,
    #[serde(default)]
    pub(in crate::routes) parameters: RequestParameters,
    pub(in crate::routes) inputs: Vec<Input>,
    #[serde(default)]
    pub(in crate::routes) outputs: Vec<Wanted>,
}

#[derive(Default, Deserialize)]
pub(in crate::routes) struct RequestParameters {
    pub(in crate::routes) binary_data_output: Option<bool>,
}

/// An output that the client asks for.
#[derive(Clone, Deserialize)]
pub(in crate::routes) struct Wanted {
    pub(in crate::routes) name: String,
    #[serde(default)]
    pub(in crate::routes) parameters: WantedParameters,
}

#[derive(Clone, Default, Deserialize)]
pub(in crate::routes) struct WantedParameters {
    pub(in crate::routes) binary_data: Option<bool>,
    /// Most classes, the likeliest first.
    pub(in crate::routes) classification: Option<u64>,
}

#[derive(Deserialize)]
pub(in crate::routes) struct Input {
    pub(in crate::routes) name: String,
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

/// Values in JSON, nested or flat, row by row: kept as they are used, since a tree of JSON values would
/// take many times the body's memory.
#[derive(Default)]
struct Data {
    numbers: Vec<f32>,
    texts: Vec<String>,
    /// Bytes as they are, which JSON cannot have.
    elements: Vec<Bytes>,
}

/// The values of an input of gRPC.
pub(in crate::routes) enum Contents {
    /// So many bytes behind the message, or in a list beside its inputs.
    Raw(usize),
    Floats(Vec<f32>),
    Elements(Vec<Bytes>),
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Fill(&mut data).deserialize(from)?;
        Ok(data)
    }
}

/// Takes up one level of [`Data`].
struct Fill<'a>(&'a mut Data);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
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
        while items.next_element_seed(Fill(self.0))?.is_some() {}
        if self.0.numbers.is_empty() || self.0.texts.is_empty() {
            Ok(())
        } else {
            Err(A::Error::custom("numbers and strings are mixed"))
        }
    }
}

/// The values of an input.
pub(in crate::routes) enum Values {
    /// `[n]` encoded photos.
    Bytes(Vec<Bytes>),
    /// `shape`, row by row.
    Floats { shape: Vec<usize>, values: Vec<f32> },
}

impl Request {
    /// Takes a body apart: `head` is the length of its JSON, where the client said so; zero means
    /// that all of it is one encoded photo, of the input that is called `only`.
    pub(in crate::routes) fn parse(
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
            let size = Some(element.len() as u64);
            let input = Input {
                name: only.into(),
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
        let request = serde_json::from_slice(&body[..head])
            .map_err(|error| Problem::bad_request(format!("no inference request: {error}")))?;
        Ok((request, body.slice(head..)))
    }
}

impl Input {
    /// An input of gRPC.
    pub(in crate::routes) fn new(
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

    /// The values, from the JSON or from the front of `binary`, which moves on; at most `most` of
    /// the first dimension.
    pub(in crate::routes) fn values(
        self,
        binary: &mut Bytes,
        most: usize,
    ) -> Result<Values, Problem> {
        let name = self.name;
        let wrong = |what: &str| Problem::bad_request(format!("input `{name}`: {what}"));
        let shape: Option<Vec<usize>> =
            self.shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        let shape = shape.ok_or_else(|| wrong("a shape has no negative side"))?;
        if shape.first().is_some_and(|photos| *photos > most) {
            return Err(Problem::too_large(format!("more than {most} photos")));
        }
        let count = shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
        let count = count.ok_or_else(|| wrong("the shape is too large"))?;
        if self.datatype == "BYTES" && count > most {
            return Err(Problem::too_large(format!("more than {most} photos")));
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
                // Base64: a JSON string cannot carry a photo otherwise.
                let photos = data.texts.iter().map(|text| crate::upload::from_base64(text));
                Some(Values::Bytes(photos.collect::<Result<_, _>>()?))
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

/// Elements that begin with their length; no more than `most`.
fn elements(mut raw: Bytes, most: usize) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    while !raw.is_empty() && elements.len() <= most {
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
pub(in crate::routes) struct Output {
    pub(in crate::routes) name: &'static str,
    pub(in crate::routes) shape: Vec<usize>,
    pub(in crate::routes) values: Computed,
}

/// What was computed.
pub(in crate::routes) enum Computed {
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

impl Output {
    pub(in crate::routes) fn datatype(&self) -> &'static str {
        match self.values {
            Computed::Floats(_) => "FP32",
            Computed::Texts(_) => "BYTES",
        }
    }

    /// Its values, little-endian; each text begins with its length.
    pub(in crate::routes) fn raw(&self) -> Vec<u8> {
        match &self.values {
            Computed::Floats(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Computed::Texts(texts) => texts
                .iter()
                .flat_map(|text| {
                    let length = (text.len() as u32).to_le_bytes();
                    length.into_iter().chain(text.bytes())
                })
                .collect(),
        }
    }

    /// Its JSON; `Some` bytes go behind all JSON, where the client wants them so.
    pub(in crate::routes) fn write(&self, binary: bool) -> (Value, Option<Vec<u8>>) {
        let datatype = self.datatype();
        let mut tensor = json!({ "name": self.name, "shape": self.shape, "datatype": datatype });
        if binary {
            let raw = self.raw();
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
