//! The table of routes: path, methods and access of each, and if its clients count as sessions.

use std::sync::LazyLock;

use matchit::Router;
use percent_encoding::percent_decode_str;

use crate::access::{Access, Scope};

/// A route of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Home,
    Health,
    Live,
    Ready,
    Metrics,
    Version,
    OpenApi,
    Docs,
    DocsScript,
    DocsStyle,
    Compare,
    Predict,
    PredictBatch,
    Explain,
    Embed,
    Feedback,
    FeedbackExport,
    Adoption,
    Reload,
    Shadow,
    V2,
    V2Live,
    V2Ready,
    V2Model,
    V2ModelReady,
    V2ModelConfig,
    V2ModelStats,
    V2Infer,
    V2Index,
    V2Load,
    V2Unload,
}

/// The declaration of a route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteEntry {
    pub(crate) route: Route,
    pub(crate) path: &'static str,
    /// Methods, in the format of the header `Allow`.
    pub(crate) allow: &'static str,
    pub(crate) access: Access,
    /// True where its clients count as active sessions; probes and scrapers do not.
    pub(crate) has_session: bool,
}

const GET: &str = "GET, HEAD";
const POST: &str = "POST";
const PREDICT: Access = Access::Key(Scope::Predict);
const FEEDBACK: Access = Access::Key(Scope::Feedback);
const EXPORT: Access = Access::Key(Scope::Export);
const METRICS: Access = Access::Key(Scope::Metrics);
const ADMIN: Access = Access::Key(Scope::Admin);

const fn entry(
    route: Route,
    path: &'static str,
    allow: &'static str,
    access: Access,
) -> RouteEntry {
    RouteEntry { route, path, allow, access, has_session: false }
}

const fn session(entry: RouteEntry) -> RouteEntry {
    RouteEntry { has_session: true, ..entry }
}

pub(crate) static TABLE: &[RouteEntry] = &[
    session(entry(Route::Home, "/", GET, Access::Open)),
    entry(Route::Health, "/health", GET, Access::Open),
    entry(Route::Live, "/livez", GET, Access::Open),
    entry(Route::Ready, "/readyz", GET, Access::Open),
    entry(Route::Metrics, "/metrics", GET, METRICS),
    entry(Route::Version, "/version", GET, Access::Open),
    entry(Route::OpenApi, "/openapi.json", GET, Access::Open),
    session(entry(Route::Docs, "/docs", GET, Access::Open)),
    entry(Route::DocsScript, "/docs/viewer.js", GET, Access::Open),
    entry(Route::DocsStyle, "/docs/viewer.css", GET, Access::Open),
    entry(Route::Compare, "/artifacts/compare", GET, Access::Open),
    session(entry(Route::Predict, "/predict", POST, PREDICT)),
    session(entry(Route::PredictBatch, "/predict/batch", POST, PREDICT)),
    session(entry(Route::Explain, "/explain", POST, PREDICT)),
    session(entry(Route::Embed, "/embed", POST, PREDICT)),
    session(entry(Route::Feedback, "/feedback", POST, FEEDBACK)),
    entry(Route::FeedbackExport, "/feedback/export", GET, EXPORT),
    session(entry(Route::Adoption, "/events/adoption", POST, FEEDBACK)),
    entry(Route::Reload, "/admin/reload", POST, Access::Operator),
    entry(Route::Shadow, "/shadow", GET, ADMIN),
    entry(Route::V2, "/v2", GET, Access::Open),
    entry(Route::V2Live, "/v2/health/live", GET, Access::Open),
    entry(Route::V2Ready, "/v2/health/ready", GET, Access::Open),
    entry(Route::V2Model, "/v2/models/{model}", GET, PREDICT),
    entry(Route::V2ModelReady, "/v2/models/{model}/ready", GET, Access::Open),
    entry(Route::V2ModelConfig, "/v2/models/{model}/config", GET, PREDICT),
    entry(Route::V2ModelStats, "/v2/models/{model}/stats", GET, PREDICT),
    session(entry(Route::V2Infer, "/v2/models/{model}/infer", POST, PREDICT)),
    entry(Route::V2Index, "/v2/repository/index", POST, PREDICT),
    entry(Route::V2Load, "/v2/repository/models/{model}/load", POST, Access::Operator),
    entry(Route::V2Unload, "/v2/repository/models/{model}/unload", POST, Access::Operator),
];

/// Router of all paths. Each model has one version, which a path may name.
static ROUTER: LazyLock<Router<&'static RouteEntry>> = LazyLock::new(|| {
    const MODEL: &str = "/v2/models/{model}";
    let mut router = Router::new();
    for entry in TABLE {
        let versioned = entry.path.strip_prefix(MODEL);
        let versioned = versioned.map(|rest| format!("{MODEL}/versions/{{version}}{rest}"));
        for path in versioned.into_iter().chain([entry.path.to_string()]) {
            let inserted = router.insert(path, entry);
            assert!(inserted.is_ok(), "{entry:?}");
        }
    }
    router
});

/// The route of a path, and the value of the path's first parameter, decoded; empty where it has none.
pub(crate) fn find(path: &str) -> Option<(&'static RouteEntry, String)> {
    let found = ROUTER.at(path).ok()?;
    let parameter = found.params.iter().next().map_or("", |(_, value)| value);
    let parameter = percent_decode_str(parameter).decode_utf8().ok()?.into_owned();
    Some((*found.value, parameter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_is_declared_once_and_found_by_its_path() {
        for (number, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.route as usize, number, "{entry:?}");
            let parts: Vec<&str> = entry.path.split(['{', '}']).collect();
            let (path, expected) = match parts[..] {
                [path] => (path.to_string(), ""),
                [start, _, end] => (format!("{start}a%20b{end}"), "a b"),
                _ => panic!("handlers get one parameter: {entry:?}"),
            };
            let (found, parameter) = find(&path).unwrap();
            assert_eq!((found.route, parameter.as_str()), (entry.route, expected));
        }
        assert_eq!(find("/v2/models/m/versions/7/infer").unwrap().0.route, Route::V2Infer);
        assert_eq!(find("/v2/models/m/versions/7").unwrap().0.route, Route::V2Model);
        assert!(find("/nothing").is_none() && find("/predict/").is_none());
    }
}
