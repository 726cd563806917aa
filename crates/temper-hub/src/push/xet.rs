//! Large files through Xet, Hugging Face's chunk storage, by its own client crate `hf-xet`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde::Deserialize;
use url::Url;
use xet::xet_session::{HeaderMap, HeaderValue, Sha256Policy, XetConfig, XetSessionBuilder, header};

use crate::{
    Error, Hub, Result,
    answer::About,
    http::Request,
    names::printable,
    push::{Sending, Target, account::pull_request_query, content::Content},
    settings::is_loopback,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WriteToken {
    access_token: String,
    exp: u64,
    cas_url: String,
}

impl Hub {
    /// Sends files to the Xet storage, which takes only the chunks that it lacks.
    pub(crate) fn send_xet(&self, target: &Target, files: &[&Content], sending: &Sending<'_>) -> Result<()> {
        let repo = &target.repo;
        let about = About::doing(format!("upload files to {repo}")).repo(repo);
        // A pull request has no revision yet.
        let revision = if target.pull_request { "None" } else { &target.branch };
        let url = self.http.api(repo, &["xet-write-token", revision]) + pull_request_query(target);
        let token: WriteToken = self.http.json(&Request::get(url.as_str()), &about)?;
        let storage = Url::parse(&token.cas_url).ok();
        if !storage.is_some_and(|url| url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url)) {
            return Err(self.http.bad_answer(&about, "it sends us to a Xet storage without https"));
        }
        let failed = |error: &dyn std::fmt::Display| Error::Xet {
            what: format!("files to {repo}"),
            message: printable(&crate::settings::without_query(&error.to_string())),
        };
        let mut config = XetConfig::new();
        config.telemetry.enabled = false;
        let patience = self.http.patience();
        config.client.retry_max_attempts = patience.tries as usize;
        config.client.retry_base_delay = patience.first_wait;
        let session = XetSessionBuilder::new_with_config(config).with_cache_dir(&self.settings().xet_cache.value);
        let session = session.build().map_err(|error| failed(&error))?;
        let commit = session.new_upload_commit().map_err(|error| failed(&error))?;
        let commit = commit
            .with_endpoint(token.cas_url)
            .with_token_info(token.access_token, token.exp)
            .with_token_refresh_url(url, self.authorization())
            .build_blocking()
            .map_err(|error| failed(&error))?;
        let over = AtomicBool::new(false);
        let work = || {
            for file in files {
                let policy = Sha256Policy::from_hex(&file.sha256);
                commit.upload_from_path_blocking(file.local.clone(), policy).map_err(|error| failed(&error))?;
            }
            commit.commit_blocking().map_err(|error| failed(&error))
        };
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if self.http.check_abandoned().is_err() {
                        // It ends with an error of its own, in `work`.
                        let _ = commit.abort();
                        return;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let report = work();
            over.store(true, Ordering::Relaxed);
            report
        });
        self.http.check_abandoned()?;
        let arrived = report?.uploads.len();
        if arrived != files.len() {
            return Err(failed(&format!("{arrived} of {} files arrived", files.len())));
        }
        files.iter().for_each(|file| sending.advance(file.size));
        Ok(())
    }

    fn authorization(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = self.http.token().map(|token| format!("Bearer {}", token.secret()));
        if let Some(mut value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        headers
    }
}
