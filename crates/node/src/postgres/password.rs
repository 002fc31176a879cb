//! The password of the role that owns the database, which is kept only as a SCRAM verifier.

use synapsedb_pg::scram::{self, Verifier};

use super::{Config, DEFAULT_PASSWORD};

/// The verifier of a password, with a salt of its own, as `CREATE ROLE … PASSWORD` takes it.
pub fn verifier(password: &str) -> String {
    scram::verifier(password, rand::random(), scram::ITERATIONS)
}

/// Whether the configured verifier is that of the default password. No, when there is none or it cannot be read.
pub fn has_default_password(config: &Config) -> bool {
    let Some(file) = &config.role_verifier_file else { return false };
    std::fs::read_to_string(file).is_ok_and(|text| belongs_to(text.trim(), DEFAULT_PASSWORD))
}

/// Whether a verifier was made of a password.
pub(super) fn belongs_to(verifier: &str, password: &str) -> bool {
    Verifier::parse(verifier).is_some_and(|verifier| verifier.is_of(password))
}
