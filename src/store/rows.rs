//! Reading rows, wherever they are.

use std::ops::ControlFlow;

use super::Error;

/// Read access to the rows of a partition: inside a transaction, or of a snapshot of the store.
pub trait Rows {
    /// The value of a row.
    ///
    /// # Errors
    /// When the record fails its checksum or the store cannot be read.
    fn get(&self, table: &str, key: &str) -> Result<Option<&[u8]>, Error>;

    /// Visits the rows of a table whose keys are `from` or later, in the order of their keys' bytes, until told to stop.
    ///
    /// # Errors
    /// When a record fails its checksum or the store cannot be read.
    fn scan(
        &self,
        table: &str,
        from: &str,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error>;
}
