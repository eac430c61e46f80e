//! The Node binding: argument checks and conversions, nothing else.

use napi_derive::napi;

/// The version of this binary, equal to the package's.
#[napi]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
