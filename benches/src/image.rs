//! The image that Berth runs: busybox alone, served once to a pull by the smallest registry there can be.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// What is linked to busybox in the image.
pub const APPLETS: [&str; 5] = ["sh", "true", "sleep", "cat", "dd"];
/// `PATH` in the image.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Serves the image from a thread until the process ends; returns its reference.
pub fn serve(busybox: &Path) -> Result<String> {
    let layer = layer(busybox)?;
    let config = serde_json::to_vec(&json!({
        "architecture": if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": [format!("PATH={PATH}")], "Cmd": ["/bin/true"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on 127.0.0.1")?;
    let reference = format!("{}/bench/busybox:latest", listener.local_addr()?);
    let blobs = Arc::new([manifest, config, layer]);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let blobs = blobs.clone();
            // A client that closes is its own affair; a pull that fails says so.
            std::thread::spawn(move || answer(stream, &*blobs));
        }
    });
    Ok(reference)
}

fn answer(mut stream: TcpStream, blobs: &[Vec<u8>]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let found = match path {
        "/v2/" => None,
        _ if path.ends_with("/manifests/latest") => blobs.first(),
        _ => blobs.iter().find(|blob| path.ends_with(&digest(blob))),
    };
    let (status, body) = match found {
        Some(body) => ("200 OK", body.as_slice()),
        None if path == "/v2/" => ("200 OK", &b""[..]),
        None => ("404 Not Found", &b""[..]),
    };
    let kind = if path.contains("/manifests/") { MANIFEST } else { "application/octet-stream" };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len())?;
    write!(stream, "Docker-Content-Digest: {}\r\nConnection: close\r\n\r\n", digest(body))?;
    if method == "HEAD" { Ok(()) } else { stream.write_all(body) }
}

pub fn layer(busybox: &Path) -> Result<Vec<u8>> {
    let program = std::fs::read(busybox).with_context(|| format!("reading {}", busybox.display()))?;
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header
    };
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), format!("{dir}/"), &[][..])?;
    }
    let mut file = header(tar::EntryType::Regular, 0o755, program.len() as u64);
    tar.append_data(&mut file, "bin/busybox", &program[..])?;
    for applet in APPLETS {
        let mut link = header(tar::EntryType::Link, 0o755, 0);
        tar.append_link(&mut link, format!("bin/{applet}"), "bin/busybox")?;
    }
    Ok(tar.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
