//! Sources behind TLS are read where their certificate is trusted, and what is not trusted is told as such.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use watchpost::observe::source::{Http, Kind};

use crate::connect::make_certificates;
use crate::shared::{self, unique};
use crate::sources::{http, of, ready, stage, start, until};
use crate::web::Web;

/// Answers every request over TLS with a number, as the server of that name's certificates; returns its port.
fn serve(directory: &Path, name: &str) -> u16 {
    let certificate = CertificateDer::from_pem_file(directory.join(format!("{name}-server.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}-key.pem"))).unwrap();
    drop(rustls::crypto::ring::default_provider().install_default());
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut reader = BufReader::new(StreamOwned::new(connection, stream));
            // Who does not trust the certificate hangs up.
            let end = reader.by_ref().lines().map_while(Result::ok).find(String::is_empty);
            if end.is_some() {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n17";
                drop(reader.get_mut().write_all(answer.as_bytes()));
            }
        }
    });
    port
}

#[tokio::test]
async fn a_source_behind_tls_is_read_with_the_ca_that_signed_it_and_with_no_other() {
    let (server, web) = (shared::server().await, Web::start().await);
    let client = ready(server.url()).await;
    let feed = unique("https");
    let directory = tempfile::tempdir().unwrap();
    make_certificates(directory.path(), "own");
    make_certificates(directory.path(), "other");
    let port = serve(directory.path(), "own");
    web.seen.elsewhere.set(format!("https://127.0.0.1:{port}/count?password=secret")).unwrap();
    let trusting = |name: &str, scheme: &str, ca: &str| {
        let mut source = http(&feed, name, format!("{scheme}://127.0.0.1:{port}/count"), 50);
        let Kind::Http(Http { ca: trusted, .. }) = &mut source.kind else { unreachable!() };
        *trusted = Some(directory.path().join(ca));
        source
    };
    let _collector = start(
        &client,
        vec![
            trusting("good", "https", "own.pem"),
            trusting("loud", "HTTPS", "own.pem"),
            trusting("bad", "https", "other.pem"),
            trusting("none", "https", "no.pem"),
            http(&feed, "system", format!("HTTPS://127.0.0.1:{port}/count"), 50),
            http(&feed, "away", web.url("/away"), 50),
        ],
    );
    for name in ["good", "loud"] {
        let found = until(server.url(), &feed, name, |s| !of(s, name, "reading").is_empty()).await;
        assert_eq!(of(&found, name, "reading")[0].body, 17);
    }
    for (name, expected, words) in [
        ("bad", "tls", vec!["https://127.0.0.1", "certificate"]),
        ("none", "tls", vec!["no.pem", "No such file"]),
        ("system", "tls", vec![]),
        ("away", "redirect", vec!["http://127.0.0.1", "/away", "https://127.0.0.1", "url"]),
    ] {
        let found = until(server.url(), &feed, name, |s| !of(s, name, "failure").is_empty()).await;
        let failure = of(&found, name, "failure")[0];
        let message = failure.body["message"].as_str().unwrap();
        assert!(stage(failure) == expected && words.iter().all(|word| message.contains(word)), "{failure:?}");
        assert!(!message.contains("secret"), "{message}");
    }
}
