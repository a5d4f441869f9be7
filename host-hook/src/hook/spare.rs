//! The bridge of spare cards. The host service makes it; where the service is away, a VM with a card in it would not start
//! because of us.

use std::path::Path;

use crate::{host::SPARE_BRIDGE, story, tunnel::Tunnels};

/// Whether the description may have a card in it: a search, as for the metadata.
pub(super) fn is_named(xml: &[u8]) -> bool {
    xml.windows(SPARE_BRIDGE.len()).any(|window| window == SPARE_BRIDGE.as_bytes())
}

/// Makes it, unless it is there.
///
/// # Errors
/// In words.
pub(super) fn ensure() -> Result<(), String> {
    if Path::new("/sys/class/net").join(SPARE_BRIDGE).exists() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let made = runtime.block_on(async { Tunnels::open()?.ensure_bridge(SPARE_BRIDGE).await });
    made.map(drop).map_err(|error| story(&error))
}
