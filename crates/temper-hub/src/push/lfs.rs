//! Large files: to the object storage by the Git LFS protocol (basic and multipart), or to Xet when the hub says so.
//!
//! <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>; multipart is Hugging Face's own: the keys `1`, `2`, …
//! of the upload's `header` are the URLs of the parts, each `chunk_size` bytes. A part that fails is sent again; a push that is
//! begun anew sends all parts of the file again, for the protocol gives new URLs and has no way to ask which parts are there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Error, Hub, Result,
    answer::About,
    http::{Content as Body, Request},
    pull::each,
    push::{Sending, Target, content::Content},
};

/// Objects of one batch request.
const BATCH: usize = 100;

/// Objects that are sent at the same time.
const PARALLEL: usize = 3;

/// The smallest and the largest number of bytes of a part that makes sense.
const PART_BYTES: std::ops::RangeInclusive<u64> = 1..=(5 << 30);

#[derive(Deserialize)]
struct Batch {
    #[serde(default)]
    transfer: Option<String>,
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

impl Hub {
    /// Brings large files to where the hub wants them; those that it has already are not sent. Returns the bytes sent.
    pub(crate) fn send_large(&self, target: &Target, files: &[&Content], sending: &Sending<'_>) -> Result<u64> {
        let mut sent = 0;
        for files in files.chunks(BATCH) {
            let batch = self.ask_batch(target, files)?;
            let wanted = |object: &Object| object.actions.as_ref().is_some_and(|actions| actions.upload.is_some());
            let mut missing = Vec::new();
            for file in files {
                match batch.objects.iter().find(|object| object.oid == file.sha256) {
                    Some(object) if wanted(object) => missing.push((*file, object)),
                    Some(_) => sending.advance(file.size),
                    None => return Err(self.http.bad_answer(&self.about(target), "it leaves out a file of the batch")),
                }
            }
            if batch.transfer.as_deref() == Some("xet") && !missing.is_empty() {
                let files: Vec<_> = missing.iter().map(|(file, _)| *file).collect();
                self.send_xet(target, &files, sending)?;
            } else {
                each(&missing, PARALLEL, |(file, object)| self.send_object(target, file, object, sending))?;
            }
            sent += missing.iter().map(|(file, _)| file.size).sum::<u64>();
        }
        Ok(sent)
    }

    fn about<'a>(&self, target: &'a Target) -> About<'a> {
        About::doing(format!("upload files to {}", target.repo)).repo(&target.repo)
    }

    fn ask_batch(&self, target: &Target, files: &[&Content]) -> Result<Batch> {
        let about = self.about(target);
        let mut transfers = vec!["basic", "multipart"];
        if self.settings().xet.value {
            transfers.push("xet");
        }
        let objects: Vec<_> = files.iter().map(|file| json!({"oid": file.sha256, "size": file.size})).collect();
        let mut body =
            json!({"operation": "upload", "transfers": transfers, "objects": objects, "hash_algo": "sha256"});
        if !target.pull_request {
            body["ref"] = json!({"name": target.branch});
        }
        let page = format!("{}.git", target.repo.page());
        let segments: Vec<&str> = page.split('/').chain(["info", "lfs", "objects", "batch"]).collect();
        let media = "application/vnd.git-lfs+json";
        let request =
            Request::post(self.http.url(&segments), body).header("accept", media).header("content-type", media);
        let batch: Batch = self.http.json(&request, &about)?;
        match batch.objects.iter().find_map(|object| object.error.as_ref()) {
            Some(error) => Err(Error::Refused {
                doing: about.doing,
                status: error.code,
                message: crate::names::printable(&error.message),
            }),
            None => Ok(batch),
        }
    }

    fn send_object(&self, target: &Target, file: &Content, object: &Object, sending: &Sending<'_>) -> Result<()> {
        let Some(Actions { upload: Some(upload), verify }) = &object.actions else { return Ok(()) };
        let about = About { doing: format!("upload {} to {}", file.path, target.repo), ..self.about(target) };
        match upload.header.get("chunk_size") {
            Some(chunk) => self.send_parts(file, upload, chunk, &about, sending)?,
            None => {
                self.put(file, 0..file.size, &upload.href, &upload.header, &about)?;
                sending.advance(file.size);
            }
        }
        if let Some(verify) = verify {
            let body = json!({"oid": file.sha256, "size": file.size});
            let request = with_headers(Request::post(verify.href.as_str(), body), &verify.header);
            self.http.send(&request, &about)?;
        }
        Ok(())
    }

    fn send_parts(
        &self,
        file: &Content,
        upload: &Action,
        chunk: &Value,
        about: &About<'_>,
        sending: &Sending<'_>,
    ) -> Result<()> {
        let bytes = chunk.as_str().and_then(|text| text.parse().ok()).or(chunk.as_u64());
        let bytes = bytes.filter(|bytes| PART_BYTES.contains(bytes));
        let bytes = bytes.ok_or_else(|| self.http.bad_answer(about, "it names no size of parts"))?;
        let mut parts = Vec::new();
        for number in 1..=file.size.div_ceil(bytes) {
            let url = upload.header.get(&number.to_string()).and_then(Value::as_str);
            let url = url.ok_or_else(|| self.http.bad_answer(about, format!("it gives no URL for part {number}")))?;
            let start = (number - 1) * bytes;
            let end = file.size.min(start + bytes);
            let etag = self.put(file, start..end, url, &BTreeMap::new(), about)?;
            let etag =
                etag.ok_or_else(|| self.http.bad_answer(about, format!("part {number} came back without ETag")))?;
            sending.advance(end - start);
            parts.push(json!({"partNumber": number, "etag": etag}));
        }
        let body = json!({"oid": file.sha256, "parts": parts});
        let media = "application/vnd.git-lfs+json";
        let request = Request::post(upload.href.as_str(), body).header("accept", media).header("content-type", media);
        self.http.send(&request, about)?;
        Ok(())
    }

    /// PUTs bytes of a file; the same bytes twice do no harm, so that a broken connection is tried again.
    fn put(
        &self,
        file: &Content,
        range: std::ops::Range<u64>,
        url: &str,
        headers: &BTreeMap<String, Value>,
        about: &About<'_>,
    ) -> Result<Option<String>> {
        let content = Body::Part { path: &file.local, start: range.start, length: range.end - range.start };
        let request = Request { method: reqwest::Method::PUT, content, ..Request::get(url) };
        let answer = self.http.send(&with_headers(request, headers), about)?;
        Ok(answer.headers.get("etag").and_then(|value| value.to_str().ok()).map(String::from))
    }
}

fn with_headers<'a>(request: Request<'a>, headers: &BTreeMap<String, Value>) -> Request<'a> {
    let text = headers.iter().filter_map(|(name, value)| Some((name, value.as_str()?)));
    text.fold(request, |request, (name, value)| request.header(name, value))
}
