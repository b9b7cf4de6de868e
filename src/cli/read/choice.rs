//! What of an observer's log is shown.

use clap::Args;
use watchpost::contract::Table;
use watchpost::follow::{Delta, Item};

/// Tables, keys or events; without any of it everything but the runtime's own tables.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Choice {
    /// Only rows of this table; the runtime's own, such as _sources, are shown only when named.
    #[arg(long, value_parser = Table::parse)]
    pub(crate) table: Option<Table>,
    /// Only rows with this key.
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Only events.
    #[arg(long, conflicts_with_all = ["table", "key"])]
    pub(crate) events: bool,
}

impl Choice {
    /// Whether this is shown. What is missing always is.
    pub(crate) fn takes(&self, item: &Item) -> bool {
        match item {
            Item::Delta(delta) => self.takes_delta(delta),
            Item::Event(_) => self.events || !self.is_of_rows(),
            Item::Snapshot(_) => !self.events,
            Item::Commit(_) => !self.events && !self.is_of_rows(),
            Item::Gap(_) | Item::Anew { .. } | Item::CannotKeepUp { .. } => true,
        }
    }

    /// Whether only certain rows are shown.
    pub(crate) fn is_of_rows(&self) -> bool {
        self.table.is_some() || self.key.is_some()
    }

    /// Whether this row is shown.
    pub(crate) fn takes_row(&self, table: &Table, key: &str) -> bool {
        let by_table = self.table.as_ref().map_or(!table.is_runtime(), |wanted| wanted == table);
        by_table && self.key.as_ref().is_none_or(|wanted| wanted == key) && !self.events
    }

    fn takes_delta(&self, delta: &Delta) -> bool {
        self.takes_row(&delta.table, &delta.key)
    }
}
