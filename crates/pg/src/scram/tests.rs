//! Logins against PostgreSQL's own way, against the client of `postgres-protocol`, and against garbage.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use proptest::prelude::*;

use super::*;

const SALT: [u8; 16] = *b"0123456789abcdef";
/// Few rounds keep the tests short.
const ROUNDS: u32 = 3;

fn stored(password: &str) -> Verifier {
    Verifier::parse(&verifier(password, SALT, ROUNDS)).unwrap()
}

fn exchange(password: &str, end_point: Option<&[u8]>) -> ServerExchange {
    ServerExchange::new(stored(password), end_point.map(<[u8]>::to_vec), [7; 18])
}

/// A login by the client of `postgres-protocol`.
fn log_in(
    server: &mut ServerExchange,
    password: &str,
    mechanism: &str,
    binding: ChannelBinding,
) -> Result<Keys, ScramError> {
    let mut client = ScramSha256::new(password.as_bytes(), binding);
    let first = server.first(mechanism, client.message())?;
    client.update(&first).unwrap();
    let (last, keys) = server.finish(client.message())?;
    client.finish(&last).unwrap();
    Ok(keys)
}

/// A login with keys.
fn pass_through(server: &mut ServerExchange, keys: Arc<Keys>) -> Result<Keys, ScramError> {
    pass_through_by(server, keys, Channel::Unbound)
}

/// A login with keys on this channel.
fn pass_through_by(
    server: &mut ServerExchange,
    keys: Arc<Keys>,
    channel: Channel,
) -> Result<Keys, ScramError> {
    let mut client = ClientExchange::new(keys, channel, [9; 18]);
    let first = server.first(client.mechanism(), &client.first())?;
    let (last, keys) = server.finish(&client.reply(&first)?)?;
    client.verify(&last)?;
    Ok(keys)
}

/// Computed by `postgres_protocol::password` (its own test has the same numbers).
#[test]
fn the_verifier_of_postgresql() {
    let salt = std::array::from_fn(|index| index as u8 + 1);
    let text = verifier("secret", salt, ITERATIONS);
    assert_eq!(
        text,
        "SCRAM-SHA-256$4096:AQIDBAUGBwgJCgsMDQ4PEA==$\
         8rrDg00OqaiWXJ7p+sCgHEIaBSHY89ZJl3mfIsf32oY=:05L1f+yZbiN8O0AnO40Og85NNRhvzTS57naKRWCcsIA="
    );
    let read = Verifier::parse(&text).unwrap();
    assert_eq!((read.iterations, &read.salt[..]), (4096, &salt[..]));
    assert!(read.is_of("secret") && !read.is_of("Secret"));
}

#[test]
fn what_is_no_verifier() {
    let good = verifier("secret", SALT, ROUNDS);
    assert!(Verifier::parse(&good).is_some());
    for (from, to) in [
        ("SCRAM-SHA-256$", "SCRAM-SHA-512$"),
        ("SCRAM-SHA-256$", ""),
        ("$3:", "$0:"),
        ("$3:", "$+3:"),
        ("$3:", "$x:"),
        ("$3:", "$99999999999:"),
        ("$3:MDEy", "$3:MD!y"),
        ("$3:", "$3"),
        ("=$", "=:"),
        ("=$", "A=$"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        assert_eq!(Verifier::parse(&bad), None, "{bad}");
    }
    for bad in ["", "md5d41d8cd98f00b204e9800998ecf8427e", "secret", &good[..good.len() - 4]] {
        assert_eq!(Verifier::parse(bad), None, "{bad}");
    }
}

/// RFC 7677 §3, both sides.
#[test]
fn the_example_of_the_standard() {
    const USER_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let salt = base64::decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap().try_into().unwrap();
    let stored = Verifier::parse(&verifier("pencil", salt, 4096)).unwrap();
    let mut server = ServerExchange::new(stored, None, [0; 18]);
    server.set_nonce("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
    let first = format!("n,,n=user,r={USER_NONCE}");
    let first = server.first("SCRAM-SHA-256", first.as_bytes()).unwrap();
    let expected =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    assert_eq!(String::from_utf8(first.clone()).unwrap(), expected);
    let (last, keys) = server.finish(FINAL.as_bytes()).unwrap();
    assert_eq!(last, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    // Our client names no user, so its proof is another; that it reads this challenge is what can be shown here.
    let mut client = ClientExchange::new(Arc::new(keys), Channel::Unbound, [0; 18]);
    client.set_nonce(USER_NONCE);
    assert!(client.reply(&first).unwrap().starts_with(&FINAL.as_bytes()[..58]));
    assert_eq!(client.verify(&last), Err(ScramError::ServerSignature));
}

#[test]
fn logs_in_and_passes_through() {
    let mut server = exchange("pencil", None);
    assert_eq!(server.mechanisms(), ["SCRAM-SHA-256"]);
    let unsupported = ChannelBinding::unsupported;
    let keys = log_in(&mut server, "pencil", "SCRAM-SHA-256", unsupported()).unwrap();
    assert!(keys.fit(&stored("pencil")) && !keys.fit(&stored("pen")));
    let again = pass_through(&mut exchange("pencil", None), Arc::new(keys)).unwrap();
    // A changed password, also with the same salt, ends it.
    let refused = pass_through(&mut exchange("pen", None), Arc::new(again));
    assert_eq!(refused.unwrap_err(), ScramError::Password);
    let mut server = exchange("pencil", None);
    let error = log_in(&mut server, "pen", "SCRAM-SHA-256", unsupported()).unwrap_err();
    assert_eq!((error.sqlstate(), error), ("28P01", ScramError::Password));
}

#[test]
fn binds_the_channel() {
    let hash = b"the hash of a certificate";
    let bound = || ChannelBinding::tls_server_end_point(hash.to_vec());
    let mut server = exchange("pencil", Some(hash));
    assert_eq!(server.mechanisms(), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    log_in(&mut server, "pencil", "SCRAM-SHA-256-PLUS", bound()).unwrap();
    // Binding is the client's choice,
    let mut server = exchange("pencil", Some(hash));
    log_in(&mut server, "pencil", "SCRAM-SHA-256", ChannelBinding::unsupported()).unwrap();
    // but not if it was lied to, by who is in between,
    let mut server = exchange("pencil", Some(hash));
    let error = log_in(&mut server, "pencil", "SCRAM-SHA-256", ChannelBinding::unrequested());
    assert_eq!(error.unwrap_err().sqlstate(), "28000");
    // or if another is at the other end.
    let mut server = exchange("pencil", Some(b"another"));
    let error = log_in(&mut server, "pencil", "SCRAM-SHA-256-PLUS", bound()).unwrap_err();
    assert_eq!((error.sqlstate(), error), ("28000", ScramError::Binding));
    // Without TLS there is none to bind, and a client may say that it could.
    let mut server = exchange("pencil", None);
    let error = log_in(&mut server, "pencil", "SCRAM-SHA-256-PLUS", bound()).unwrap_err();
    assert_eq!((error.sqlstate(), error), ("08P01", ScramError::Mechanism));
    let mut server = exchange("pencil", None);
    log_in(&mut server, "pencil", "SCRAM-SHA-256", ChannelBinding::unrequested()).unwrap();
}

#[test]
fn passes_through_bound_to_the_channel() {
    let hash = b"the hash of a certificate";
    let keys = || {
        let none = ChannelBinding::unsupported();
        Arc::new(log_in(&mut exchange("pencil", None), "pencil", "SCRAM-SHA-256", none).unwrap())
    };
    let to = |hash: &[u8]| Channel::EndPoint(hash.to_vec());
    pass_through_by(&mut exchange("pencil", Some(hash)), keys(), to(hash)).unwrap();
    // Somebody stands in between with a certificate of his own, or leaves out what the server offers.
    let refused = pass_through_by(&mut exchange("pencil", Some(hash)), keys(), to(b"another"));
    assert_eq!(refused.unwrap_err(), ScramError::Binding);
    let refused = pass_through_by(&mut exchange("pencil", Some(hash)), keys(), Channel::NotOffered);
    assert_eq!(refused.unwrap_err(), ScramError::Downgrade);
    pass_through_by(&mut exchange("pencil", None), keys(), Channel::NotOffered).unwrap();
}

#[test]
fn the_client_binds_what_it_can() {
    let (plain, plus, other) = (&b"SCRAM-SHA-256"[..], &b"SCRAM-SHA-256-PLUS"[..], &b"OAUTH"[..]);
    let hash = || Some(b"hash".to_vec());
    for (end_point, offered, chosen) in [
        (hash(), vec![plus, plain], Some(Channel::EndPoint(b"hash".to_vec()))),
        (hash(), vec![plus], Some(Channel::EndPoint(b"hash".to_vec()))),
        (hash(), vec![plain], Some(Channel::NotOffered)),
        (hash(), vec![other], None),
        (None, vec![plus, plain], Some(Channel::Unbound)),
        (None, vec![plain], Some(Channel::Unbound)),
        (None, vec![plus], None),
        (None, vec![], None),
    ] {
        assert_eq!(Channel::choose(end_point, &offered), chosen);
    }
}

#[test]
fn nobody_is_like_somebody() {
    let mock = |user: &str| Verifier::mock(user, &[1; 32]);
    assert_eq!(mock("eve"), mock("eve"));
    assert_ne!(mock("eve").salt, mock("adam").salt);
    assert_ne!(mock("eve").salt, Verifier::mock("eve", &[2; 32]).salt);
    assert_eq!((mock("eve").salt.len(), mock("eve").iterations), (SALT.len(), ITERATIONS));
    let mut server = ServerExchange::new(mock("eve"), None, [7; 18]);
    let none = ChannelBinding::unsupported();
    let error = log_in(&mut server, "secret", "SCRAM-SHA-256", none).unwrap_err();
    assert_eq!(error, ScramError::Password);
    assert!(!mock("eve").is_of("secret"));
}

/// One entry per rule of the first message, as PostgreSQL answers it.
#[test]
fn first_messages() {
    let (plain, plus) = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS");
    let long = format!("n,,n=,r={}", "x".repeat(MESSAGE_BYTES_MAX));
    for (mechanism, tls, message, state) in [
        (plain, false, "n,,n=,r=abc", None),
        (plain, false, "y,,n=anybody,r=abc,x=optional,y=", None),
        (plain, true, "n,,n=,r=abc", None),
        (plus, true, "p=tls-server-end-point,,n=,r=abc", None),
        ("PLAIN", true, "n,,n=,r=abc", Some("08P01")),
        (plain, true, "y,,n=,r=abc", Some("28000")),
        (plain, true, "p=tls-server-end-point,,n=,r=abc", Some("08P01")),
        (plain, false, "p=tls-server-end-point,,n=,r=abc", Some("08P01")),
        (plus, true, "n,,n=,r=abc", Some("08P01")),
        (plus, true, "y,,n=,r=abc", Some("08P01")),
        (plus, true, "p=tls-unique,,n=,r=abc", Some("08P01")),
        (plus, true, "p=tls-server-end-point,a=eve,n=,r=abc", Some("0A000")),
        (plus, true, "p=tls-server-end-point,x,n=,r=abc", Some("08P01")),
        (plus, true, "p=tls-server-end-point,", Some("08P01")),
        (plus, true, "p=tls-server-end-point", Some("08P01")),
        (plus, true, "p", Some("08P01")),
        (plain, false, "n,a=eve,n=,r=abc", Some("0A000")),
        (plain, false, "n,,m=x,n=,r=abc", Some("0A000")),
        (plain, false, "n,,r=abc", Some("08P01")),
        (plain, false, "n,,n=", Some("08P01")),
        (plain, false, "n,,n=,r=a\u{e4}c", Some("08P01")),
        (plain, false, "n,,n=,r=a c", Some("08P01")),
        (plain, false, "n,,n=,r=abc,1=x", Some("08P01")),
        (plain, false, "n,,n=,r=abc,x", Some("08P01")),
        (plain, false, "n,,n=,r=abc\0", Some("08P01")),
        (plain, false, "n,", Some("08P01")),
        (plain, false, "nn", Some("08P01")),
        (plain, false, "z,,n=,r=abc", Some("08P01")),
        (plain, false, "", Some("08P01")),
        (plain, false, &long, Some("08P01")),
    ] {
        let mut server = exchange("pencil", tls.then_some(b"hash"));
        let answer = server.first(mechanism, message.as_bytes());
        let found = answer.as_ref().err().map(ScramError::sqlstate);
        assert_eq!(found, state, "{mechanism} {message}");
        if let Ok(first) = answer {
            let start = format!("r=abc{},s=", base64::encode(&[7; 18]));
            assert!(first.starts_with(start.as_bytes()));
            // A nonce serves once.
            assert!(server.first(mechanism, message.as_bytes()).is_err());
        }
    }
}

/// Changes of a right final message, each for another reason.
#[test]
fn final_messages() {
    let finish = |change: fn(&str) -> String| {
        let mut server = exchange("pencil", None);
        let mut client = ScramSha256::new(b"pencil", ChannelBinding::unsupported());
        let first = server.first("SCRAM-SHA-256", client.message()).unwrap();
        client.update(&first).unwrap();
        let message = std::str::from_utf8(client.message()).unwrap();
        server.finish(change(message).as_bytes()).map(drop).map_err(|error| error.sqlstate())
    };
    assert_eq!(finish(str::to_owned), Ok(()));
    for change in [
        (|text| text.replace("c=biws", "c=eSws")) as fn(&str) -> String,
        |text| text.replace("c=biws", "c="),
        |text| text.replace("c=biws,", ""),
        |text| text.replace(",r=", ",r=x"),
        |text| text.replace(",r=", ",x="),
        |text| text.replace(",p=", ",p"),
        |text| text.replace(",p=", ",q="),
        |text| text.replace(",p=", ",p=AAAA"),
        |text| text.replace(",p=", ",p=\u{e4}"),
        |text| format!("{text},x=y"),
        |text| format!("{text}="),
        |text| text[..text.len() - 4].to_owned(),
        |text| text.replace('c', "\0"),
        |_| String::new(),
    ] {
        assert_eq!(finish(change), Err("08P01"));
    }
    // What is signed is what was said: extensions are allowed, but not after signing.
    assert_eq!(finish(|text| text.replace(",p=", ",x=y,p=")), Err("28P01"));
    let mut server = exchange("pencil", None);
    assert_eq!(server.finish(b"c=biws,r=,p=").unwrap_err().sqlstate(), "08P01");
}

#[test]
fn the_client_checks_the_server() {
    let keys = Arc::new(Keys { client_key: [1; 32], server_key: [2; 32] });
    let client = || ClientExchange::new(keys.clone(), Channel::Unbound, [9; 18]);
    let nonce = base64::encode(&[9; 18]);
    for (message, is_right) in [
        (format!("r={nonce}more,s=AAAA,i=4096"), true),
        (format!("r={nonce},s=AAAA,i=1"), true),
        (format!("r={nonce}more,s=AAAA,i=0"), false),
        (format!("r={nonce}more,s=AAAA,i=-1"), false),
        (format!("r={nonce}more,s=AAAA,i=4096,x=y"), false),
        (format!("r={nonce}more,s=A,i=4096"), false),
        (format!("r={nonce}more,s=AAAA"), false),
        (format!("m=x,r={nonce}more,s=AAAA,i=4096"), false),
        ("r=other,s=AAAA,i=4096".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(client().reply(message.as_bytes()).is_ok(), is_right, "{message}");
    }
    let mut begun = client();
    assert!(matches!(begun.verify(b"v=AAAA"), Err(ScramError::Malformed(_))));
    begun.reply(format!("r={nonce}more,s=AAAA,i=4096").as_bytes()).unwrap();
    assert_eq!(begun.verify(b"v=AAAA"), Err(ScramError::ServerSignature));
    let refused = ScramError::Refused("invalid-proof".to_owned());
    assert_eq!(begun.verify(b"e=invalid-proof"), Err(refused));
    for message in ["v=A", "v", "x=y", ""] {
        assert!(matches!(begun.verify(message.as_bytes()), Err(ScramError::Malformed(_))));
    }
}

#[test]
fn secrets_are_not_printed() {
    let keys = Keys { client_key: [77; 32], server_key: [77; 32] };
    let shown = format!("{keys:?} {:?}", stored("pencil"));
    assert_eq!(shown, "Keys { .. } Verifier { iterations: 3, .. }");
}

proptest! {
    #[test]
    fn every_password(password in "\\PC{0,20}", other in "\\PC{0,20}", hash: Vec<u8>) {
        let binding = ChannelBinding::tls_server_end_point(hash.clone());
        let mut server = exchange(&password, Some(&hash));
        let keys = log_in(&mut server, &password, "SCRAM-SHA-256-PLUS", binding).unwrap();
        pass_through(&mut exchange(&password, Some(&hash)), Arc::new(keys)).unwrap();
        if !stored(&password).is_of(&other) {
            let none = ChannelBinding::unsupported();
            let answer = log_in(&mut exchange(&password, None), &other, "SCRAM-SHA-256", none);
            prop_assert_eq!(answer.unwrap_err(), ScramError::Password);
        }
    }

    #[test]
    fn nothing_panics(
        bytes: Vec<u8>, text in "[a-z=,ZQ/+0-9\0]{0,40}", parsed in "(SCRAM-SHA-256)?[$:A-Z0-9=]{0,20}",
    ) {
        let _ = Verifier::parse(&parsed);
        for garbage in [&bytes[..], text.as_bytes()] {
            for prefix in ["", "n,,", "y,,", "p=tls-server-end-point,,", "n,,n=,r=", "c=biws,r="] {
                let garbage = [prefix.as_bytes(), garbage].concat();
                for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", &parsed] {
                    let mut server = exchange("", Some(b"hash"));
                    let _ = server.first(mechanism, &garbage);
                    prop_assert!(server.finish(&garbage).is_err());
                }
                let mut server = exchange("", None);
                server.first("SCRAM-SHA-256", b"n,,n=,r=abc").unwrap();
                prop_assert!(server.finish(&garbage).is_err());
                let keys = Keys { client_key: [1; 32], server_key: [2; 32] };
                let mut client = ClientExchange::new(Arc::new(keys), Channel::Unbound, [9; 18]);
                prop_assert!(client.reply(&garbage).is_err());
                prop_assert!(client.verify(&garbage).is_err());
            }
        }
    }
}
