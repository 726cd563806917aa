//! From the socket to the endpoints and back, past the faults.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use percent_encoding::percent_decode_str;

use crate::error::Refusal;
use crate::fault::{Moment, Trouble};
use crate::http::{Reply, Request, Side, pairs, segments};
use crate::hub::Hub;
use crate::{route, xet};

/// Serves one side on a socket until the runtime ends.
pub(crate) async fn serve(hub: Arc<Hub>, side: Side, socket: tokio::net::TcpListener) {
    let app = Router::new().fallback(move |request: axum::extract::Request| answer(hub.clone(), side, request));
    // It ends when the runtime does; there is nobody to tell.
    let _ = axum::serve(socket, app).await;
}

/// The request as faults and the log see it.
struct Seen {
    hub: Arc<Hub>,
    side: Side,
    method: String,
    path: String,
    number: usize,
}

impl Seen {
    fn trouble(&self, moment: Moment) -> Option<Trouble> {
        self.hub.faults.take(self.side, &self.method, &self.path, moment)
    }

    /// Sends a reply; `HEAD` gets its headers only.
    fn send(&self, reply: Reply, body: Option<Body>) -> Response {
        self.hub.log.note(self.number, |entry| entry.status = Some(reply.status.as_u16()));
        let length = reply.body.len();
        let request_id = format!("testhub-{}", self.number);
        let reply = if self.side == Side::Hub { reply.with("x-request-id", &request_id) } else { reply };
        let head = self.method == "HEAD";
        let mut response = Response::new(match body {
            Some(body) if !head => body,
            _ if head => Body::empty(),
            _ => Body::from(reply.body),
        });
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        if !matches!(reply.status.as_u16(), 204 | 304) {
            response.headers_mut().insert("content-length", length.into());
        }
        response
    }
}

async fn answer(hub: Arc<Hub>, side: Side, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    let number = hub.log.arrive(side, &parts);
    let seen = Seen { hub, side, method: parts.method.to_string(), path, number };
    let trouble = seen.trouble(Moment::Arrival);
    if let Some(Trouble::CutUpload(bytes)) = trouble {
        read(&seen, body, bytes).await;
        return cut(Bytes::new());
    }
    let Some(mut body) = read(&seen, body, u64::MAX).await else { return cut(Bytes::new()) };
    match trouble {
        Some(Trouble::WrongUpload) => {
            let (middle, mut bytes) = (body.len() / 2, body.to_vec());
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
            body = bytes.into();
        }
        Some(Trouble::Delay(time)) => tokio::time::sleep(time).await,
        Some(trouble) => return seen.send(refused(&trouble).into_reply(), None),
        None => {}
    }
    let reply = carry_out(&seen, parts, body).await;
    let reply = if reply.status.as_u16() < 400 {
        match seen.trouble(Moment::Answer) {
            Some(Trouble::LandedThenCut) => return cut(Bytes::new()),
            Some(trouble) => changed(reply, &trouble),
            None => reply,
        }
    } else {
        reply
    };
    let content = reply.status.is_success() && seen.method != "HEAD" && !reply.body.is_empty();
    match content.then(|| seen.trouble(Moment::Content)).flatten() {
        Some(trouble) => spoiled(&seen, reply, &trouble),
        None => seen.send(reply, None),
    }
}

/// The body up to `limit` bytes; `None` if the client went away.
async fn read(seen: &Seen, body: Body, limit: u64) -> Option<Bytes> {
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    while (whole.len() as u64) < limit {
        match stream.next().await {
            Some(Ok(part)) => whole.extend_from_slice(&part),
            Some(Err(_)) => return None,
            None => break,
        }
    }
    seen.hub.log.note(seen.number, |entry| entry.body_bytes = whole.len() as u64);
    Some(whole.into())
}

/// Runs the endpoint on a thread that may block.
async fn carry_out(seen: &Seen, parts: Parts, body: Bytes) -> Reply {
    let Some(segments) = segments(parts.uri.path()) else { return Refusal::bad("invalid path").into_reply() };
    let request = Request {
        method: parts.method,
        segments,
        query: pairs(parts.uri.query().unwrap_or_default()),
        headers: parts.headers,
        body,
        identified: OnceLock::new(),
        target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
    };
    if seen.side == Side::Storage && xet::is_for_xet(&request) {
        return xet::forward(&seen.hub, request).await.unwrap_or_else(Refusal::into_reply);
    }
    let (hub, side) = (seen.hub.clone(), seen.side);
    let answered = tokio::task::spawn_blocking(move || route::dispatch(&hub, side, &request)).await;
    let answered = answered.unwrap_or_else(|_| Err(Refusal::new(500, "The endpoint panicked.")));
    answered.unwrap_or_else(Refusal::into_reply)
}

/// The answer to a request that a fault stopped at the door.
fn refused(trouble: &Trouble) -> Refusal {
    match trouble {
        Trouble::Status(status) => Refusal::new(*status, "Ordered by a test."),
        Trouble::RateLimited { retry_after } => {
            let refusal = Refusal::new(429, "You have been rate limited.");
            let refusal = refusal.header("retry-after", retry_after.to_string());
            let refusal = refusal.header("ratelimit", format!("\"api\";r=0;t={retry_after}"));
            refusal.header("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")
        }
        _ => Refusal::bad_credentials(),
    }
}

/// The answer after a fault that leaves its content alone, or replaces it with an error.
fn changed(reply: Reply, trouble: &Trouble) -> Reply {
    match trouble {
        Trouble::Landed(status) => Refusal::new(*status, "Ordered by a test.").into_reply(),
        Trouble::Header(name, value) => reply.with(name, value),
        Trouble::Edit(edit) => match serde_json::from_slice(&reply.body) {
            Ok(mut value) => {
                edit(&mut value);
                Reply { body: value.to_string().into(), ..reply }
            }
            Err(_) => reply,
        },
        _ => reply,
    }
}

/// Sends content with something wrong about it.
fn spoiled(seen: &Seen, reply: Reply, trouble: &Trouble) -> Response {
    let content = reply.body.clone();
    match trouble {
        Trouble::CutDownload(bytes) => {
            let kept = content.slice(..content.len().min(usize::try_from(*bytes).unwrap_or(usize::MAX)));
            let response = seen.send(reply, Some(cut_body(kept)));
            seen.hub.log.note(seen.number, |entry| entry.status = None);
            response
        }
        Trouble::ShortBody(bytes) => {
            let kept = content.slice(..content.len().min(usize::try_from(*bytes).unwrap_or(usize::MAX)));
            seen.send(Reply { body: kept, ..reply }, None)
        }
        Trouble::WrongBytes => {
            let mut wrong = content.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 1;
            seen.send(Reply { body: wrong.into(), ..reply }, None)
        }
        Trouble::Page(status) => {
            let page = "<!DOCTYPE html><html><body><h1>Access denied</h1></body></html>";
            seen.send(Reply::new(*status, page).with("content-type", "text/html; charset=utf-8"), None)
        }
        Trouble::Drip { bytes, pause } => seen.send(reply, Some(drip(content, (*bytes).max(1), *pause))),
        _ => seen.send(reply, None),
    }
}

/// A response that ends the connection after `first`; with nothing in `first`, before a single byte.
fn cut(first: Bytes) -> Response {
    Response::new(cut_body(first))
}

fn cut_body(first: Bytes) -> Body {
    let end = || io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a test");
    if first.is_empty() {
        return Body::from_stream(stream::iter([Err::<Bytes, _>(end())]));
    }
    // The pause lets the first bytes reach the wire.
    let parts = stream::iter([Ok(first)]).chain(stream::once(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(end())
    }));
    Body::from_stream(parts)
}

fn drip(content: Bytes, bytes: usize, pause: Duration) -> Body {
    let parts = stream::unfold(content, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(pause).await;
        let part = rest.split_to(bytes.min(rest.len()));
        Some((Ok::<_, Infallible>(part), rest))
    });
    Body::from_stream(parts)
}
