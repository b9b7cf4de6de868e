//! What a store directory says it is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Version of the layout of the store. Another version is refused, never migrated silently.
pub const LAYOUT: u32 = 1;

/// Whose state a directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the layout ([`LAYOUT`]).
    pub layout: u32,
    /// Tenant, empty for the default one.
    pub tenant: String,
    /// Observer.
    pub observer: String,
    /// Partition.
    pub partition: u16,
    /// Of how many.
    pub partitions: u16,
    /// Fingerprint of the fold that wrote the rows.
    pub fingerprint: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = if self.tenant.is_empty() { "_" } else { &self.tenant };
        let fold: String = self.fingerprint.chars().take(12).collect();
        write!(
            f,
            "partition {} of {} of observer {}, tenant {tenant}, fold {fold}, layout {}",
            self.partition, self.partitions, self.observer, self.layout
        )
    }
}
