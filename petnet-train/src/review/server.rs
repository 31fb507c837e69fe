//! The page on this machine, which takes decisions.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Mutex;

use anyhow::{Result, anyhow};
use serde::Deserialize;
use tiny_http::{Header, Method, Request, Response, Server};

use super::corrections::{Action, Correction, Corrections};
use super::page::Page;

/// Requests that are answered at once: a browser asks for many photos.
const THREADS: usize = 4;
/// Most bytes of a decision.
const MOST: u64 = 4096;

#[derive(Deserialize)]
struct Decision {
    sha256: String,
    /// Nothing takes a decision back.
    action: Option<Action>,
    label: Option<String>,
}

type Reply = Response<std::io::Cursor<Vec<u8>>>;

/// Serves until the process ends.
pub(super) fn serve(address: SocketAddr, page: &Page, corrections: Corrections) -> Result<()> {
    let server = Server::http(address).map_err(|e| anyhow!("--serve {address}: {e}"))?;
    let html = page.html(false)?;
    let corrections = Mutex::new(corrections);
    say!("http://{}  (Ctrl-C ends it)", server.server_addr());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for mut request in server.incoming_requests() {
                    let reply = answer(&mut request, page, &html, &corrections);
                    let reply = reply.unwrap_or_else(|error| {
                        Response::from_string(format!("{error:#}\n")).with_status_code(400)
                    });
                    // A browser that has gone needs no answer.
                    let _ = request.respond(reply);
                }
            });
        }
    });
    Ok(())
}

fn answer(
    request: &mut Request,
    page: &Page,
    html: &str,
    corrections: &Mutex<Corrections>,
) -> Result<Reply> {
    let corrections = || corrections.lock().map_err(|_| anyhow!("an earlier decision failed"));
    // Another site's page must not decide: browsers name where a request comes from.
    let mut headers = request.headers().iter();
    let site = headers.find(|header| header.field.equiv("Sec-Fetch-Site"));
    if site.is_some_and(|site| !["same-origin", "none"].contains(&site.value.as_str())) {
        return Err(anyhow!("only this page may ask"));
    }
    let url = request.url().to_string();
    match (request.method(), url.as_str()) {
        (Method::Get, "/") => Ok(typed("text/html; charset=utf-8", html.as_bytes().to_vec())),
        (Method::Get, "/corrections") => {
            let all: Vec<Correction> = corrections()?.all().cloned().collect();
            Ok(typed("application/json", serde_json::to_vec(&all)?))
        }
        (Method::Post, "/decide") => {
            let mut body = String::new();
            request.as_reader().take(MOST).read_to_string(&mut body)?;
            let decision: Decision = serde_json::from_str(&body)?;
            let correction = correction(page, &decision)?;
            corrections()?.decide(&decision.sha256, correction)?;
            Ok(typed("application/json", b"{}".to_vec()))
        }
        (Method::Get, photo) => {
            let number = photo.strip_prefix("/photo/").and_then(|number| number.parse().ok());
            let number = number.filter(|number: &usize| *number < page.dataset.len());
            match number {
                Some(number) => Ok(typed("image/jpeg", page.picture(number)?)),
                None => Ok(Response::from_string("no such page\n").with_status_code(404)),
            }
        }
        _ => Ok(Response::from_string("no such page\n").with_status_code(405)),
    }
}

/// The row of a decision; nothing where it is taken back.
fn correction(page: &Page, decision: &Decision) -> Result<Option<Correction>> {
    let Decision { sha256, action, label } = decision;
    let Some(action) = *action else { return Ok(None) };
    let sample = page.dataset.samples().iter().find(|sample| sample.sha256 == *sha256);
    let sample = sample.ok_or_else(|| anyhow!("no photo has this digest"))?;
    let classes = page.dataset.classes();
    let label = match (action, label) {
        (Action::Keep | Action::Drop, _) => page.dataset.class_names(sample).join("|"),
        (Action::Relabel, Some(label)) if classes.contains(label) => label.clone(),
        (Action::Relabel, _) => return Err(anyhow!("the label is none of the classes")),
    };
    let path = sample.path.display().to_string();
    Ok(Some(Correction { sha256: sha256.clone(), path, label, action }))
}

fn typed(kind: &str, body: Vec<u8>) -> Reply {
    let reply = Response::from_data(body);
    match Header::from_bytes("content-type", kind) {
        Ok(header) => reply.with_header(header),
        Err(()) => reply,
    }
}
