//! A load client: closed loop (each connection asks again when answered) or open loop (requests
//! fall due at a rate, whatever the server does; latency counts from when they fell due).
//!
//! Run with `cargo run --release --example load -- ADDRESS PHOTO CONNECTIONS SECONDS [RATE]`

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The outcome of a request, and its latency.
type Sample = (u16, Duration);

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, photo, connections, seconds, rate @ ..] = arguments.as_slice() else {
        eprintln!("usage: load ADDRESS PHOTO CONNECTIONS SECONDS [RATE]");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<f64>().map_err(std::io::Error::other);
    let (connections, seconds) = (number(connections)? as usize, number(seconds)?);
    let rate = rate.first().map(number).transpose()?;
    let request = request(&std::fs::read(photo)?);
    let due = AtomicUsize::new(0);
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let samples: Vec<Sample> = std::thread::scope(|scope| {
        let client = || {
            let mut connection = None;
            let mut samples = Vec::new();
            loop {
                let mut start = Instant::now();
                if let Some(rate) = rate {
                    let place = due.fetch_add(1, Ordering::Relaxed) as f64;
                    start = began + Duration::from_secs_f64(place / rate);
                    std::thread::sleep(start.saturating_duration_since(Instant::now()));
                }
                if start >= end {
                    return samples;
                }
                let status = ask(&mut connection, address, &request).unwrap_or(0);
                samples.push((status, start.elapsed()));
            }
        };
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(client)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    report(&samples, began.elapsed().as_secs_f64());
    Ok(())
}

/// The multipart form that existing clients send.
fn request(photo: &[u8]) -> Vec<u8> {
    let head = "--PeT\r\ncontent-disposition: form-data; name=\"file\"; filename=\"photo.jpg\"\r\n\
        content-type: image/jpeg\r\n\r\n";
    let tail = "\r\n--PeT--\r\n";
    let length = head.len() + photo.len() + tail.len();
    let start = format!(
        "POST /predict HTTP/1.1\r\nhost: load\r\ncontent-type: multipart/form-data; boundary=PeT\r\n\
         content-length: {length}\r\n\r\n{head}"
    );
    [start.as_bytes(), photo, tail.as_bytes()].concat()
}

/// Sends on the kept connection, or on a new one; returns the status.
fn ask(
    connection: &mut Option<BufReader<TcpStream>>,
    address: &str,
    request: &[u8],
) -> std::io::Result<u16> {
    let mut stream = match connection.take() {
        Some(open) => open,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            BufReader::new(stream)
        }
    };
    stream.get_mut().write_all(request)?;
    let (mut status, mut length, mut keep, mut line) = (0, 0, true, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = line.trim_end().to_ascii_lowercase();
        if text.is_empty() {
            break;
        } else if text.starts_with("http/1.1 ") {
            status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        } else if let Some(value) = text.strip_prefix("content-length: ") {
            length = value.parse().unwrap_or(0);
        } else if text == "connection: close" {
            keep = false;
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    *connection = keep.then_some(stream);
    Ok(status)
}

fn report(samples: &[Sample], seconds: f64) {
    let of = |wanted: &dyn Fn(u16) -> bool| {
        let mut times: Vec<f64> =
            samples.iter().filter(|s| wanted(s.0)).map(|s| s.1.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let quantile = |times: &[f64], q: f64| {
        let place = ((times.len() as f64 * q) as usize).min(times.len().saturating_sub(1));
        times.get(place).map_or("null".into(), |t| format!("{t:.2}"))
    };
    let (served, refused) = (of(&|status| status == 200), of(&|status| status == 503));
    println!(
        "{{\"served\":{},\"refused\":{},\"failed\":{},\"per_second\":{:.1},\"p50_ms\":{},\
         \"p99_ms\":{},\"refused_p50_ms\":{},\"refused_p99_ms\":{}}}",
        served.len(),
        refused.len(),
        samples.len() - served.len() - refused.len(),
        served.len() as f64 / seconds,
        quantile(&served, 0.5),
        quantile(&served, 0.99),
        quantile(&refused, 0.5),
        quantile(&refused, 0.99),
    );
}
