use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::memory::Memory;
use crate::settings::Settings;

const CERTIFICATE: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/certificate.pem"));
const KEY: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/key.pem"));
const PUBLIC_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));
const IMAGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nimage";

fn settings() -> Settings {
    Settings {
        max_body: 100_000,
        fetch_header_timeout: Duration::from_hours(1),
        transfer_timeout: Duration::from_hours(1),
        min_rate: 1024,
        fetch_timeout: Duration::from_hours(1),
        max_fetches: 4,
        ..Settings::default()
    }
}

fn hosts(text: &str) -> AllowedHosts {
    text.parse().unwrap()
}

/// Status, kind and detail of a refusal.
fn parts(problem: &Problem) -> (u16, &'static str, &str) {
    (problem.status.as_u16(), problem.kind.name(), &problem.detail)
}

/// Requires a future to be `Send`, since tasks move between threads.
fn sendable<F: Future + Send>(future: F) -> F {
    future
}

/// Fetches with a memory budget of its own.
async fn fetch(remote: &Fetcher, url: &str) -> Result<Bytes, Problem> {
    let memory = Memory::new(&Settings { memory: Some(4096), ..Settings::default() });
    memory.open().unwrap();
    let fetching = remote.fetch(url, Buffer::new(&memory, 1 << 20)?);
    let outcome = tokio::time::timeout(Duration::from_secs(60), sendable(fetching)).await;
    outcome.expect("no limit has ended the fetch").map(|(bytes, _claim)| bytes)
}

/// A server on 127.0.0.1 that reads the head of one request per connection, and sends each piece of its response after a pause
/// in milliseconds. It then closes the connection, unless the last piece is empty.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

type Pieces = Vec<(u64, Vec<u8>)>;

impl Server {
    async fn start(answer: impl Fn(&str) -> Pieces + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&str) -> Pieces + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::default());
        let (answer, seen) = (Arc::new(answer), Arc::clone(&heads));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, seen, tls) = (Arc::clone(&answer), Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, &*answer, &seen).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => converse(stream, &*answer, &seen).await,
                            Err(_) => Ok(()),
                        },
                    }
                });
            }
        });
        Self { address, heads }
    }

    /// A server with the same response to every request.
    async fn constant(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |_| vec![(0, answer.clone())]).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A [`Fetcher`] that may fetch from this server only.
    fn remote(&self, settings: Settings) -> Fetcher {
        Fetcher::new(hosts(&format!("http://{}", self.address)), settings).unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    answer: &(impl Fn(&str) -> Pieces + ?Sized),
    seen: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    for (pause, piece) in answer(&head) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if piece.is_empty() {
            std::future::pending::<()>().await;
        }
        stream.write_all(&piece).await?;
        stream.flush().await?;
    }
    stream.shutdown().await
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

/// A network whose names resolve to the given addresses, one list per resolution, and whose connections all go to one server.
struct Fake {
    answers: Mutex<Vec<Vec<IpAddr>>>,
    resolutions: AtomicUsize,
    connections: Mutex<Vec<SocketAddr>>,
    server: SocketAddr,
    /// Unresponsive addresses.
    silent: Vec<IpAddr>,
    pause: Duration,
}

impl Fake {
    fn new<const N: usize>(server: SocketAddr, answers: [&[&str]; N]) -> Self {
        let addresses = |texts: &&[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Self {
            answers: Mutex::new(answers.iter().rev().map(addresses).collect()),
            resolutions: AtomicUsize::new(0),
            connections: Mutex::default(),
            server,
            silent: Vec::new(),
            pause: Duration::ZERO,
        }
    }

    fn connections(&self) -> Vec<SocketAddr> {
        self.connections.lock().unwrap().clone()
    }

    fn remote(self, hosts: &str, settings: Settings) -> (Fetcher, Arc<Self>) {
        let network = Arc::new(self);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
        let shared: Arc<dyn Network> = Arc::clone(&network) as _;
        (Fetcher::with_network(self::hosts(hosts), settings, shared, roots).unwrap(), network)
    }
}

#[async_trait]
impl Network for Fake {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        self.resolutions.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.pause).await;
        self.answers.lock().unwrap().pop().ok_or_else(|| io::Error::other("no such name"))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.connections.lock().unwrap().push(address);
        if self.silent.contains(&address.ip()) {
            std::future::pending::<()>().await;
        }
        TcpStream::connect(self.server).await
    }
}

fn is_allowed(list: &str, url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| hosts(list).check(url).is_ok())
}

#[test]
fn entries_are_displayed_in_canonical_form() {
    for (text, shown) in [
        ("A.example", "a.example"),
        ("a.example.", "a.example"),
        ("https://a.example:443", "a.example"),
        ("a.example:8443", "a.example:8443"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        (" *.b.example , http://10.0.0.5:9000", "*.b.example,http://10.0.0.5:9000"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[2001:DB8::1]:9000", "[2001:db8::1]:9000"),
        ("[::ffff:10.0.0.5]", "10.0.0.5"),
    ] {
        let parsed = hosts(text);
        assert_eq!(parsed.to_string(), shown, "{text}");
        assert_eq!(hosts(shown), parsed, "{text}");
        assert_eq!(serde_json::to_string(&parsed).unwrap(), format!("\"{shown}\""));
    }
    for (text, error) in [
        ("", "an entry is empty"),
        ("a.example,,b.example", "an entry is empty"),
        ("ftp://a.example", "`ftp` is neither http nor https"),
        ("a.example/images", "an entry is a host or"),
        ("user@a.example", "an entry is a host or"),
        ("a b.example", "an entry is a host or"),
        ("a.example?x", "an entry is a host or"),
        ("a.example\\x", "an entry is a host or"),
        ("*", "an entry is a host or"),
        ("a.*.example", "an entry is a host or"),
        ("%61.example", "an entry is a host or"),
        ("*.", "`*.`: empty host"),
        (".", "`.` names no host"),
        ("*.com", "a whole top-level domain"),
        ("*.10.0.0.5", "an IP address has no sub-domains"),
        ("a.example:99999", "invalid port number"),
        ("10.0.0.0/8", "an entry is a host or"),
        ("1.2.3.4.5", "invalid IPv4 address"),
    ] {
        let shown = text.parse::<AllowedHosts>().unwrap_err().to_string();
        assert!(shown.contains(error), "{text}: {shown}");
    }
}

#[test]
fn only_listed_addresses_are_admitted() {
    const LIST: &str =
        "a.example,*.b.example,cdn.c.example:8443,http://d.example,http://10.0.0.5:9000";
    for url in [
        "https://a.example/x.jpg?y=1#z",
        "https://A.EXAMPLE./x",
        "https://a.example:443/",
        "https:a.example/x",
        "https:\\\\a.example\\x",
        "https://ａ.example/",
        "https://%61.example/",
        "https://@a.example/",
        "https://x.b.example/",
        "https://x.y.b.example/",
        "https://cdn.c.example:8443/",
        "http://d.example/",
        "http://10.0.0.5:9000/bucket/x.jpg",
        "http://0x0a.5:9000/",
        "http://167772165:9000/",
        "http://[::ffff:10.0.0.5]:9000/",
    ] {
        assert!(is_allowed(LIST, url), "{url}");
    }
    for url in [
        "http://a.example/",
        "https://a.example:8443/",
        "https://a.example../",
        "https://a.example.evil.example/",
        "https://evil-a.example/",
        "https://evil.example/?https://a.example/",
        "https://evil.example#@a.example/",
        "https://evil.example\\@a.example/",
        "https://a.example@evil.example/",
        "https://a.example:443@evil.example/",
        "https://user@a.example/",
        "https://:secret@a.example/",
        "https://b.example/",
        "https://.b.example/",
        "https://evilb.example/",
        "https://x.b.example.evil.example/",
        "https://cdn.c.example/",
        "https://d.example/",
        "http://10.0.0.5/",
        "https://10.0.0.5:9000/",
        "http://10.0.0.6:9000/",
        "http://10.0.0.5.b.example:9000/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "gopher://a.example/",
        "ws://a.example/",
        "//a.example/x",
        "a.example/x",
        "https://",
        "https:///",
        "",
    ] {
        assert!(!is_allowed(LIST, url), "{url}");
    }
}

#[test]
fn no_spelling_of_an_address_passes_a_list_of_names() {
    for host in [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "2130706433",
        "１２７.0.0.1",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "①②⑦.0.0.1",
        "localhost",
        "ⓛocalhost",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "[fd00:ec2::254]",
        "metadata.google.internal",
        "0",
        "0.0.0.0",
    ] {
        assert!(
            !is_allowed("*.b.example,http://*.b.example", &format!("http://{host}/")),
            "{host}"
        );
        assert!(
            !is_allowed("*.b.example,http://*.b.example", &format!("https://{host}/")),
            "{host}"
        );
    }
}

/// At least one address of each network that is not globally reachable.
const RESERVED_ADDRESSES: [&str; 51] = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::5db8:d70e",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::5db8:d70e",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:5db8:d70e::",
    "3fff::1",
    "3fff:fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "4000::1",
];

/// Public addresses, most of them at the edges of those networks.
const GLOBAL_ADDRESSES: [&str; 19] = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.0",
    "168.63.129.17",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "::ffff:93.184.215.14",
    "64:ff9b::5db8:d70e",
    "2001:200::1",
    "2606:4700::1111",
    "2a00:1450::1",
    "3ffe:ffff::1",
];

#[test]
fn only_public_addresses_are_global() {
    for (ips, global) in [(&RESERVED_ADDRESSES[..], false), (&GLOBAL_ADDRESSES[..], true)] {
        for ip in ips {
            assert_eq!(is_global(ip.parse().unwrap()), global, "{ip}");
        }
    }
}

#[tokio::test]
async fn an_image_is_fetched_with_headers_of_the_service_alone() {
    let server = Server::constant(IMAGE).await;
    let remote = server.remote(settings());
    assert_eq!(fetch(&remote, &server.url("/a%20b/é.jpg?x=|y#z")).await.unwrap(), "image");
    let head = server.heads().remove(0).to_ascii_lowercase();
    let mut lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines.remove(0), "get /a%20b/%c3%a9.jpg?x=|y http/1.1");
    lines.sort_unstable();
    let host = format!("host: {}", server.address);
    let agent = concat!("user-agent: petnet-serve/", env!("CARGO_PKG_VERSION"));
    let expected =
        ["", "accept-encoding: identity", "accept: image/*", "connection: close", &host, agent];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn bodies_of_each_kind_arrive_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\n\r\nimage",
        "HTTP/1.1 200 OK\r\ncontent-encoding: Identity\r\ncontent-length: 5\r\n\r\nimage",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nim\r\n3\r\nage\r\n0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nimage",
    ] {
        let server = Server::constant(answer).await;
        assert_eq!(fetch(&server.remote(settings()), &server.url("/")).await.unwrap(), "image");
    }
    let server = Server::constant("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nimage").await;
    let problem = fetch(&server.remote(settings()), &server.url("/")).await.unwrap_err();
    let broke = "the connection to the host of `url` broke";
    assert_eq!(parts(&problem), (502, "url_failed", broke));
}

#[tokio::test]
async fn addresses_that_are_not_listed_are_refused_without_a_connection() {
    let server = Server::constant(IMAGE).await;
    let (remote, network) =
        Fake::new(server.address, [&["93.184.215.14"]]).remote("a.example", settings());
    let unlisted = "images are not fetched from the host, port or scheme of `url`";
    let long = format!("https://a.example/{}", "x".repeat(MAX_URL));
    for (url, expected) in [
        ("https://evil.example/", (400, "url_not_allowed", unlisted)),
        ("http://a.example/", (400, "url_not_allowed", unlisted)),
        ("x.jpg", (400, "bad_request", "`url` is no absolute URL")),
        ("ftp://a.example/", (400, "bad_request", "the scheme of `url` must be https or http")),
        (
            "https://me:secret@a.example/",
            (400, "bad_request", "`url` must not have a user name or a password"),
        ),
        (&long, (400, "bad_request", "`url` is too long")),
    ] {
        assert_eq!(parts(&fetch(&remote, url).await.unwrap_err()), expected, "{url}");
    }
    assert_eq!((network.connections(), network.resolutions.load(Ordering::Relaxed)), (vec![], 0));
}

#[tokio::test]
async fn other_responses_are_reported_by_their_status_only() {
    for (head, code, detail) in [
        ("404 Not Found", 422, "the server of `url` answered 404"),
        ("204 No Content", 422, "the server of `url` answered 204"),
        ("206 Partial Content", 422, "the server of `url` answered 206"),
        ("302 Found", 422, "the server of `url` answered 302"),
        ("401 secret-realm", 422, "the server of `url` answered 401"),
        ("500 Oops", 502, "the server of `url` answered 500"),
        (
            "200 OK\r\ncontent-encoding: gzip",
            422,
            "the server of `url` answered with a Content-Encoding",
        ),
        ("banana", 502, "the connection to the host of `url` broke"),
    ] {
        let server = Server::constant(format!("HTTP/1.1 {head}\r\n\r\nsecret")).await;
        let problem = fetch(&server.remote(settings()), &server.url("/")).await.unwrap_err();
        assert_eq!(parts(&problem), (code, "url_failed", detail));
    }
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(2 * READ_BUFFER));
    let server = Server::constant(head).await;
    let problem = fetch(&server.remote(settings()), &server.url("/")).await.unwrap_err();
    assert_eq!(problem.status, 502, "headers are limited");
}

#[tokio::test]
async fn an_image_that_is_too_large_is_refused_by_its_length_and_while_it_is_received() {
    let limits = Settings { max_body: 1000, ..settings() };
    let expected = (413, "too_large", "the image at `url` is larger than 1000 bytes");
    // The body is never sent: the image is refused by its Content-Length.
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n".to_vec();
    let announced = Server::start(move |_| vec![(0, head.clone()), (0, vec![])]).await;
    let endless = |head: &'static str, piece: &'static str| {
        Server::start(move |_| {
            let mut pieces = vec![(0, head.into())];
            pieces.extend(std::iter::repeat_n((0, piece.into()), 100));
            pieces.push((0, vec![]));
            pieces
        })
    };
    let until_close = endless("HTTP/1.1 200 OK\r\n\r\n", "abcdefghijklmnop").await;
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked = endless(head, "10\r\nabcdefghijklmnop\r\n").await;
    for server in [announced, until_close, chunked] {
        let problem = fetch(&server.remote(limits.clone()), &server.url("/")).await.unwrap_err();
        assert_eq!(parts(&problem), expected);
    }
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{}", "x".repeat(1000));
    let server = Server::constant(whole).await;
    assert_eq!(fetch(&server.remote(limits.clone()), &server.url("/")).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn slow_servers_end_a_fetch() {
    let short = Duration::from_millis(300);
    let head = || b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    // No headers; headers in small pieces; no body; a body below the minimum rate; a body that is fast enough but endless.
    let silent = Server::start(|_| vec![(0, vec![])]).await;
    let dripping = Server::start(|_| vec![(20, b"HTTP/1.1 1".to_vec()); 1000]).await;
    let paused = Server::start(move |_| vec![(0, head()), (0, vec![])]).await;
    let trickle = move |millis: u64, piece: &'static str| {
        Server::start(move |_| {
            let mut pieces = vec![(0, head())];
            pieces.extend(std::iter::repeat_n((millis, piece.into()), 1000));
            pieces
        })
    };
    let (trickling, endless) = (trickle(50, "x").await, trickle(50, "0123456789").await);
    let early = Settings { fetch_header_timeout: short, ..settings() };
    let pace = Settings { transfer_timeout: short, ..settings() };
    let total = Settings { fetch_timeout: Duration::from_secs(1), min_rate: 1, ..settings() };
    for (server, limits) in [
        (silent, &early),
        (dripping, &early),
        (paused, &pace),
        (trickling, &pace),
        (endless, &total),
    ] {
        let problem = fetch(&server.remote(limits.clone()), &server.url("/")).await.unwrap_err();
        let late = "the image at `url` did not arrive in time";
        assert_eq!(parts(&problem), (504, "url_timeout", late));
    }
}

#[tokio::test]
async fn redirects_are_followed_within_the_list_only() {
    let server = Server::start(|head| {
        let path = head.split(' ').nth(1).unwrap();
        let port = head.to_ascii_lowercase();
        let port = port.lines().find_map(|line| line.strip_prefix("host: 127.0.0.1:")).unwrap();
        let answer = match path {
            "/image" => IMAGE.to_string(),
            "/1" => redirect("image"),
            "/2" => redirect("/1"),
            "/3" => redirect(&format!("//127.1:{port}/2")),
            "/4" => redirect("/3"),
            "/loop" => redirect("/loop"),
            "/out" => redirect("https://evil.example/"),
            "/scheme" => redirect(&format!("https://127.0.0.1:{port}/")),
            "/file" => redirect("file:///etc/passwd"),
            "/login" => redirect(&format!("http://me:secret@127.0.0.1:{port}/image")),
            "/metadata" => redirect("http://169.254.169.254/latest/meta-data/"),
            "/broken" => redirect("http://[/"),
            "/name" => redirect("https://a.example/"),
            _ => unreachable!("{path}"),
        };
        vec![(0, answer.into())]
    })
    .await;
    let list = format!("http://{},a.example", server.address);
    let network = Fake::new(server.address, [&["192.168.0.1"]]);
    let (remote, network) = network.remote(&list, settings());
    for path in ["/image", "/1", "/2", "/3"] {
        assert_eq!(fetch(&remote, &server.url(path)).await.unwrap(), "image", "{path}");
    }
    let elsewhere = (422, "url_not_allowed", "`url` redirects to an address that is not allowed");
    let often = (422, "url_failed", "`url` redirects too often");
    let before = server.heads().len();
    assert_eq!(before, 10);
    for (path, expected) in [("/4", often), ("/loop", often)] {
        assert_eq!(parts(&fetch(&remote, &server.url(path)).await.unwrap_err()), expected);
    }
    assert_eq!(server.heads().len(), before + 8, "a request and three redirects each");
    let before = network.connections().len();
    let paths = ["/out", "/scheme", "/file", "/login", "/metadata", "/broken"];
    for path in paths {
        let problem = fetch(&remote, &server.url(path)).await.unwrap_err();
        assert_eq!(parts(&problem), elsewhere, "{path}");
    }
    assert_eq!(network.connections().len(), before + paths.len());
    // A listed name that resolves to a private address.
    let problem = fetch(&remote, &server.url("/name")).await.unwrap_err();
    let unreachable = "no connection to the host of `url` could be made";
    assert_eq!(parts(&problem), (502, "url_not_allowed", unreachable));
    assert_eq!(network.connections().len(), before + paths.len() + 1);
}

#[tokio::test]
async fn a_name_must_resolve_to_public_addresses_only() {
    let server = Server::constant(IMAGE).await;
    let unreachable = "no connection to the host of `url` could be made";
    for (addresses, kind) in [
        (&["127.0.0.1"] as &[&str], "url_not_allowed"),
        (&["::1"], "url_not_allowed"),
        (&["::ffff:127.0.0.1"], "url_not_allowed"),
        (&["64:ff9b::a9fe:a9fe"], "url_not_allowed"),
        (&["169.254.169.254"], "url_not_allowed"),
        (&["93.184.215.14", "10.0.0.1"], "url_not_allowed"),
        (&["1.1.1.1", "1.1.1.1", "1.1.1.1", "1.1.1.1", "1.1.1.1", "10.0.0.1"], "url_not_allowed"),
        (&[], "url_failed"),
    ] {
        let network = Fake::new(server.address, [addresses]);
        // An address on the list does not permit names that resolve to it.
        let (remote, network) = network.remote("http://a.example,http://127.0.0.1", settings());
        let problem = fetch(&remote, "http://a.example/").await.unwrap_err();
        assert_eq!(parts(&problem), (502, kind, unreachable), "{addresses:?}");
        assert_eq!(network.connections(), []);
    }
    let (remote, _) = Fake::new(server.address, []).remote("http://a.example", settings());
    let problem = fetch(&remote, "http://a.example/").await.unwrap_err();
    assert_eq!(parts(&problem), (502, "url_failed", unreachable), "no such name");
    let remote = Fetcher::new(hosts("http://localhost"), settings()).unwrap();
    let problem = fetch(&remote, "http://localhost/").await.unwrap_err();
    assert_eq!(parts(&problem), (502, "url_not_allowed", unreachable), "the system's resolver");
}

#[tokio::test]
async fn a_name_is_resolved_once() {
    let server = Server::constant(IMAGE).await;
    let network = Fake::new(server.address, [&["93.184.215.14"], &["127.0.0.1"]]);
    let (remote, network) = network.remote("http://a.example:8080", settings());
    assert_eq!(fetch(&remote, "http://a.example.:8080/").await.unwrap(), "image");
    assert_eq!(network.resolutions.load(Ordering::Relaxed), 1);
    assert_eq!(network.connections(), [SocketAddr::new(PUBLIC_ADDRESS, 8080)]);
    assert!(server.heads()[0].contains("host: a.example:8080\r\n"), "{:?}", server.heads());
    // The next fetch resolves the name again, to the private address.
    assert_eq!(fetch(&remote, "http://a.example:8080/").await.unwrap_err().status, 502);
    assert_eq!(network.connections().len(), 1);
}

#[tokio::test]
async fn an_unresponsive_address_leaves_time_for_the_next() {
    let server = Server::constant(IMAGE).await;
    let mut network = Fake::new(server.address, [&["2606:4700::1111", "93.184.215.14"]]);
    network.silent = vec!["2606:4700::1111".parse().unwrap()];
    let limits = Settings { fetch_header_timeout: Duration::from_secs(6), ..settings() };
    let (remote, network) = network.remote("http://a.example", limits);
    assert_eq!(fetch(&remote, "http://a.example/").await.unwrap(), "image");
    assert_eq!(network.connections().len(), 2);
}

#[tokio::test]
async fn certificates_are_verified_for_the_name_of_the_address() {
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let server = Server::start_with(Some(tls), |_| vec![(0, IMAGE.into())]).await;
    let public: &[&str] = &["93.184.215.14"];
    let network = Fake::new(server.address, [public, public]);
    let (remote, network) = network.remote("localhost,a.example", settings());
    assert_eq!(fetch(&remote, "https://localhost/").await.unwrap(), "image");
    assert_eq!(network.connections(), [SocketAddr::new(PUBLIC_ADDRESS, 443)]);
    let problem = fetch(&remote, "https://a.example/").await.unwrap_err();
    let unreachable = "no connection to the host of `url` could be made";
    assert_eq!(parts(&problem), (502, "url_failed", unreachable), "the certificate's name differs");
    // The certificate is not signed by a public root.
    let network = Arc::new(Fake::new(server.address, [public]));
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let remote = Fetcher::with_network(hosts("localhost"), settings(), network, roots).unwrap();
    assert_eq!(fetch(&remote, "https://localhost/").await.unwrap_err().kind.name(), "url_failed");
}

#[tokio::test]
async fn the_number_of_concurrent_fetches_is_limited() {
    let ended = Arc::new(AtomicUsize::new(0));
    let ended_before = Arc::new(Mutex::new(Vec::new()));
    let (count, counts) = (Arc::clone(&ended), Arc::clone(&ended_before));
    let answer = move |_: &str| {
        counts.lock().unwrap().push(count.load(Ordering::Relaxed));
        vec![(300, IMAGE.into())]
    };
    let server = Server::start(answer).await;
    let one = Settings { max_fetches: 1, ..settings() };
    let (remote, url) = (server.remote(one.clone()), server.url("/"));
    let fetch_and_count = async || {
        let image = fetch(&remote, &url).await;
        ended.fetch_add(1, Ordering::Relaxed);
        image.unwrap()
    };
    assert_eq!(
        tokio::join!(fetch_and_count(), fetch_and_count()),
        ("image".into(), "image".into())
    );
    assert_eq!(*ended_before.lock().unwrap(), [0, 1], "one after the other");
    // A resolution that outlasts its fetch keeps the permit, so that the next fetch gets none in time.
    let mut network = Fake::new(server.address, [&["93.184.215.14"], &["93.184.215.14"]]);
    network.pause = Duration::from_hours(1);
    let limits = Settings { fetch_header_timeout: Duration::from_millis(300), ..one };
    let (remote, network) = network.remote("http://a.example", limits);
    assert_eq!(fetch(&remote, "http://a.example/").await.unwrap_err().kind.name(), "url_timeout");
    let problem = fetch(&remote, "http://a.example/").await.unwrap_err();
    assert_eq!((problem.status.as_u16(), problem.kind.name()), (503, "overloaded"));
    assert!(problem.is_retriable());
    assert_eq!(network.resolutions.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn memory_is_claimed_while_the_image_is_received() {
    let whole = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(50_000));
    let server = Server::constant(whole).await;
    let memory = Memory::new(&Settings { memory: Some(4096), ..Settings::default() });
    memory.open().unwrap();
    let remote = server.remote(settings());
    let buffer = Buffer::new(&memory, 1000).unwrap();
    let problem = remote.fetch(&server.url("/"), buffer).await.unwrap_err();
    assert_eq!(problem.status, 413, "the buffer's own limit");
    let closed = Memory::new(&Settings::default());
    let buffer = Buffer::new(&closed, 1 << 20).unwrap();
    let problem = remote.fetch(&server.url("/"), buffer).await.unwrap_err();
    assert_eq!(problem.status, 413, "the memory budget is not open");
}
