//! How LMDB lays out a page: header pages, records of trees, entries. Data format version 1 on a 64-bit little-endian machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::pages::Broken;

/// LMDB's `MDB_meta`: which trees a transaction has left.
pub(super) struct Meta {
    pub(super) page: usize,
    pub(super) txn: u64,
    pub(super) last: u64,
    pub(super) free: Tree,
    pub(super) main: Tree,
}

impl Meta {
    /// Both header pages must be whole and of transactions that follow each other; the one that is asked for, or the newer one, counts.
    pub(super) fn choose(file: &File, pinned: Option<u64>) -> Result<Self, Broken> {
        let first = Self::read(file, 0)?;
        let second = Self::read(file, first.page as u64)?;
        if first.page != second.page {
            return Err(damage("its two header pages do not agree on the size of a page"));
        }
        let fresh = first.txn == 0 && second.txn == 0;
        if !fresh && (first.txn % 2 != 0 || first.txn.abs_diff(second.txn) != 1) {
            return Err(damage(format!(
                "its two header pages are of the transactions {} and {}, which do not follow each other",
                first.txn, second.txn
            )));
        }
        match pinned {
            None => Ok(if second.txn > first.txn { second } else { first }),
            Some(txn) => [first, second]
                .into_iter()
                .find(|meta| meta.txn == txn)
                .ok_or_else(|| Broken::Io(io::Error::from(io::ErrorKind::Interrupted))),
        }
    }

    fn read(file: &File, at: u64) -> Result<Self, Broken> {
        let mut bytes = [0; HEADER + 24 + 2 * Tree::BYTES + 16];
        read(file, &mut bytes, at)?;
        let body = &bytes[HEADER..];
        let whole = Header::read(&bytes).is_some_and(|head| head.flags == META)
            && word(body, 0) == Some(MAGIC)
            && word(body, 4) == Some(1);
        let size = word(body, 24).and_then(|size| usize::try_from(size).ok());
        let page = size.filter(|size| size.is_power_of_two() && (512..=MAX_PAGE).contains(size));
        let (free, main) = (Tree::read(body, 24), Tree::read(body, 24 + Tree::BYTES));
        let (last, txn) = (long(body, 24 + 2 * Tree::BYTES), long(body, 32 + 2 * Tree::BYTES));
        match (whole, page, free, main, last, txn) {
            (true, Some(page), Some(free), Some(main), Some(last), Some(txn))
                if free.flags == INTEGER_KEYS
                    && main.flags == 0
                    && last > 0
                    && last < u64::MAX / page as u64 =>
            {
                Ok(Self { page, txn, last, free, main })
            }
            _ => Err(damage(format!("its header page at byte {at} is not what LMDB writes"))),
        }
    }
}

/// LMDB's `MDB_db`: where a tree begins, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tree {
    pub(super) flags: u16,
    pub(super) depth: u16,
    pub(super) branches: u64,
    pub(super) leaves: u64,
    pub(super) overflow: u64,
    pub(super) entries: u64,
    pub(super) root: u64,
}

impl Tree {
    pub(super) const BYTES: usize = 48;
    /// The root of a tree that is empty.
    pub(super) const NONE: u64 = u64::MAX;

    pub(super) fn read(bytes: &[u8], at: usize) -> Option<Self> {
        Some(Self {
            flags: short(bytes, at + 4)?,
            depth: short(bytes, at + 6)?,
            branches: long(bytes, at + 8)?,
            leaves: long(bytes, at + 16)?,
            overflow: long(bytes, at + 24)?,
            entries: long(bytes, at + 32)?,
            root: long(bytes, at + 40)?,
        })
    }

    pub(super) fn counts(&self) -> String {
        let Self { entries, branches, leaves, overflow, depth, .. } = self;
        format!("{entries} records in {branches} + {leaves} + {overflow} pages, {depth} levels deep")
    }
}

/// The first bytes of a page.
pub(super) struct Header {
    pub(super) number: u64,
    pub(super) flags: u16,
    /// Of an overflow page: how many follow each other.
    pub(super) pages: u32,
}

impl Header {
    pub(super) fn read(page: &[u8]) -> Option<Self> {
        Some(Self { number: long(page, 0)?, flags: short(page, 10)?, pages: word(page, 12)? })
    }
}

/// An entry of a page: of a leaf a key and its data, of a branch a key and the page below.
pub(super) struct Node<'p> {
    pub(super) key: &'p [u8],
    pub(super) flags: u16,
    pub(super) data: &'p [u8],
    /// Length of the data, wherever they are.
    pub(super) size: usize,
    pub(super) child: u64,
}

/// The entries of a page, which fill it from its upper bound to its end without holes.
pub(super) fn nodes(page: &[u8], is_leaf: bool) -> Option<Vec<Node<'_>>> {
    let (lower, upper) = (usize::from(short(page, 12)?), usize::from(short(page, 14)?));
    if lower < HEADER || lower % 2 != 0 || upper < lower || upper > page.len() {
        return None;
    }
    let mut places = Vec::with_capacity((lower - HEADER) / 2);
    let mut nodes = Vec::with_capacity((lower - HEADER) / 2);
    for at in (HEADER..lower).step_by(2) {
        let at = usize::from(short(page, at)?);
        let (low, high, flags) = (short(page, at)?, short(page, at + 2)?, short(page, at + 4)?);
        let key = at + NODE..at + NODE + usize::from(short(page, at + 6)?);
        let size = usize::from(low) | usize::from(high) << 16;
        let data = match (is_leaf, flags & BIG != 0) {
            (true, false) => size,
            (true, true) => 8,
            (false, _) => 0,
        };
        let end = key.end.checked_add(data)?;
        nodes.push(Node {
            key: page.get(key.clone())?,
            flags,
            data: page.get(key.end..end)?,
            size,
            child: size as u64 | u64::from(flags) << 32,
        });
        places.push((at, end.next_multiple_of(2)));
    }
    places.sort_unstable();
    let filled = places.iter().try_fold(upper, |from, &(at, end)| (from == at).then_some(end))?;
    (filled == page.len()).then_some(nodes)
}

pub(super) fn read(file: &File, bytes: &mut [u8], at: u64) -> Result<(), Broken> {
    match file.read_exact_at(bytes, at) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            let end = at.saturating_add(bytes.len() as u64);
            Err(damage(format!("the file ends before byte {end}, which is in use")))
        }
        done => done.map_err(Broken::Io),
    }
}

pub(super) fn damage(what: impl Into<String>) -> Broken {
    Broken::Damage(what.into())
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

const MAGIC: u32 = 0xBEEF_C0DE;
const MAX_PAGE: usize = 64 << 10;
/// Bytes before the entries of a page, and before the key of an entry.
pub(super) const HEADER: usize = 16;
const NODE: usize = 8;
// Kinds of pages, flags of entries and of trees.
pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
pub(super) const BIG: u16 = 0x01;
pub(super) const SUB_TREE: u16 = 0x02;
const INTEGER_KEYS: u16 = 0x08;
