//! Certificates are checked at load, and datagrams of strangers do not open.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use synapsedb_core::ids::{Incarnation, NodeId};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::authority::Validity;
use super::*;

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn identity(cluster_id: Uuid, number: u16) -> Identity {
    Identity {
        cluster_id,
        node: node(number),
        uuid: Uuid::new_v4(),
        incarnation: Incarnation::FIRST,
    }
}

fn issue(ca: &Path, out: &Path, cluster_id: Uuid, number: u16) {
    authority::issue(ca, out, cluster_id, node(number), &[], 30).unwrap();
}

fn refusal(directory: &Path, identity: &Identity) -> String {
    format!("{:#}", load(&Config::in_directory(directory), identity).unwrap_err())
}

#[test]
fn a_certificate_loads_for_its_own_node_only() {
    let root = tempfile::tempdir().unwrap();
    let (ca, out) = (root.path().join("ca"), root.path().join("node-1"));
    let cluster_id = Uuid::new_v4();
    authority::create_ca(&ca, "test", cluster_id).unwrap();
    issue(&ca, &out, cluster_id, 1);
    let handle = load(&Config::in_directory(&out), &identity(cluster_id, 1)).unwrap();
    let left = handle.expires_at().duration_since(SystemTime::now()).unwrap();
    assert!((29..=30).contains(&(left.as_secs() / 86_400)), "{left:?}");

    let other_node = refusal(&out, &identity(cluster_id, 2));
    assert!(other_node.contains("belongs to node 1, this is node 2"), "{other_node}");
    let other_cluster = refusal(&out, &identity(Uuid::new_v4(), 1));
    assert!(other_cluster.contains("this node to cluster"), "{other_cluster}");
}

#[test]
fn a_certificate_of_another_authority_or_time_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (ca, stranger, out) =
        (root.path().join("ca"), root.path().join("stranger"), root.path().join("node-1"));
    let cluster_id = Uuid::new_v4();
    authority::create_ca(&ca, "test", cluster_id).unwrap();
    authority::create_ca(&stranger, "test", cluster_id).unwrap();
    issue(&stranger, &out, cluster_id, 1);
    std::fs::copy(ca.join("ca.crt"), out.join("ca.crt")).unwrap();
    let text = refusal(&out, &identity(cluster_id, 1));
    assert!(text.contains("was not signed by the authority"), "{text}");

    let now = OffsetDateTime::now_utc();
    let past = Validity { not_before: now - Duration::days(2), not_after: now - Duration::days(1) };
    authority::issue_for(&ca, &out, cluster_id, node(1), &[], past).unwrap();
    let text = refusal(&out, &identity(cluster_id, 1));
    assert!(text.contains("has expired"), "{text}");
    let future =
        Validity { not_before: now + Duration::days(1), not_after: now + Duration::days(2) };
    authority::issue_for(&ca, &out, cluster_id, node(1), &[], future).unwrap();
    let text = refusal(&out, &identity(cluster_id, 1));
    assert!(text.contains("is not valid yet"), "{text}");
}

#[test]
fn unreadable_files_are_named() {
    let root = tempfile::tempdir().unwrap();
    let (ca, out) = (root.path().join("ca"), root.path().join("node-1"));
    let cluster_id = Uuid::new_v4();
    authority::create_ca(&ca, "test", cluster_id).unwrap();
    for (file, content, expected) in [
        ("ca.crt", "", "ca.crt holds no certificate"),
        ("node.crt", "nonsense", "node.crt holds no certificate"),
        ("node.key", "nonsense", "node.key holds no private key"),
        ("gossip.key", "1234", "gossip.key is not a gossip key"),
    ] {
        issue(&ca, &out, cluster_id, 1);
        std::fs::write(out.join(file), content).unwrap();
        let text = refusal(&out, &identity(cluster_id, 1));
        assert!(text.contains(expected), "{text}");
        std::fs::remove_file(out.join(file)).unwrap();
        let text = refusal(&out, &identity(cluster_id, 1));
        assert!(text.contains("cannot read") && text.contains(file), "{text}");
    }
    // A key of another certificate.
    issue(&ca, &out, cluster_id, 1);
    let key = std::fs::read(out.join("node.key")).unwrap();
    issue(&ca, &out, cluster_id, 1);
    std::fs::write(out.join("node.key"), key).unwrap();
    let text = refusal(&out, &identity(cluster_id, 1));
    assert!(text.contains("does not belong to the certificate"), "{text}");
}

#[test]
fn an_authority_is_never_replaced_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let (ca, out) = (root.path().join("ca"), root.path().join("node-1"));
    let cluster_id = Uuid::new_v4();
    authority::create_ca(&ca, "test", cluster_id).unwrap();
    let before = std::fs::read(ca.join("ca.key")).unwrap();
    let text = authority::create_ca(&ca, "test", cluster_id).unwrap_err().to_string();
    assert!(text.contains("nothing was changed"), "{text}");
    assert_eq!(std::fs::read(ca.join("ca.key")).unwrap(), before);
    issue(&ca, &out, cluster_id, 1);
    for file in
        [ca.join("ca.key"), ca.join("gossip.key"), out.join("node.key"), out.join("gossip.key")]
    {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
}

#[test]
fn datagrams_open_only_whole_fresh_and_in_their_cluster() {
    let (cluster_id, key) = (Uuid::new_v4(), [7; cipher::KEY_BYTES]);
    let ours = GossipCipher::new(cluster_id, &key);
    let sealed = ours.seal(node(3), 1_000_000, b"hello").unwrap();
    let opened = ours.open(&sealed, 1_500_000, 1_000_000).unwrap();
    assert_eq!((opened.sender, opened.sent_unix_us), (node(3), 1_000_000));
    assert_eq!(opened.payload, b"hello");

    assert_eq!(ours.open(&sealed, 3_000_000, 1_000_000), Err(DatagramError::Stale));
    assert_eq!(ours.open(&sealed, -1_000_001, 1_000_000), Err(DatagramError::Stale));
    let other_cluster = GossipCipher::new(Uuid::new_v4(), &key);
    assert_eq!(other_cluster.open(&sealed, 1_000_000, 1), Err(DatagramError::Forged));
    let other_key = GossipCipher::new(cluster_id, &[8; cipher::KEY_BYTES]);
    assert_eq!(other_key.open(&sealed, 1_000_000, 1), Err(DatagramError::Forged));
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(ours.open(&flipped, 1_000_000, 1).is_err(), "bit {bit}");
    }
    for length in 0..sealed.len() {
        assert!(ours.open(&sealed[..length], 1_000_000, 1).is_err(), "length {length}");
    }
}
