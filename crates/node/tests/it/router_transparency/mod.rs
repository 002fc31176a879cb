//! Transaction pooling is not to be seen: what a session sets, makes or holds is there in its next transaction and
//! nowhere else, and everything that a server says is said as a server says it.

mod catalog;
mod login;
mod markers;
mod own;
mod protocol;
mod script;
mod sessions;
mod state;
mod statements;
pub mod wire;
