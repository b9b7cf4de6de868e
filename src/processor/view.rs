//! An observer's view of its rows, which may fail: then it costs the view, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use crate::store::{self, Rows};

use super::fold::{Error, Fold};

/// The view of `rows`, or why it failed; a panic is a failure. Nothing where the rows are the view.
///
/// # Errors
/// When the rows cannot be read, which is not the view's failure.
pub fn view(fold: &dyn Fold, rows: &dyn Rows) -> Result<Result<Option<Value>, String>, store::Error> {
    let made = catch_unwind(AssertUnwindSafe(|| fold.view(rows)))
        .unwrap_or_else(|panic| Err(Error::panicked(&fold.spec().observer, &*panic)));
    match made {
        Ok(view) => Ok(Ok(view)),
        Err(Error::Reject(why)) => Ok(Err(why.chars().take(MOST).collect())),
        Err(Error::Store(error)) => Err(error),
    }
}

/// As many characters of a failure are kept as of a source's.
const MOST: usize = 1000;
