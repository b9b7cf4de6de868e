//! The pages of LMDB's data file, read from outside before anything maps them.
//!
//! LMDB believes what it maps: a file that was cut short ends the process with SIGBUS, a flipped bit in a page with an assertion, an endless loop, or rows
//! of another moment. Here every page is accounted for exactly once (header page, part of a tree, or free), every tree must hold what its record says,
//! and every key must lie where a search would look for it. What passes cannot lead LMDB astray; values are the visitor's to check.
//!
//! # Assumes
//! LMDB's data format version 1 on a 64-bit little-endian machine, without duplicate keys. Nothing writes to the pages that are read: either nobody
//! else has the store, or a reader of the same transaction keeps them.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::ops::Range;

use super::layout::{
    BIG, BRANCH, HEADER, Header, LEAF, Meta, OVERFLOW, SUB_TREE, Tree, damage, long, nodes, read,
};

/// What keeps a file from being used.
#[derive(Debug)]
pub(super) enum Broken {
    /// What was found and what was expected.
    Damage(String),
    /// It could not be read.
    Io(io::Error),
}

/// What a walk has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    /// Bytes of a page, pages up to the last in use, and how many of these are free.
    pub(super) page: usize,
    pub(super) pages: u64,
    pub(super) free: u64,
}

/// Takes the table, key and value of each record, and says what is wrong with it.
pub(super) type Visit<'v> = dyn FnMut(&str, &[u8], &[u8]) -> Result<(), String> + 'v;

/// Walks all pages that belong to the newest transaction, or to `pinned`. Nothing where the file is empty: LMDB has made and not yet written it.
pub(super) fn walk(
    file: &File,
    pinned: Option<u64>,
    visit: &mut Visit<'_>,
) -> Result<Option<Walked>, Broken> {
    if file.metadata().map_err(Broken::Io)?.len() == 0 {
        return Ok(None);
    }
    let meta = Meta::choose(file, pinned)?;
    let words =
        usize::try_from(meta.last / 64 + 1).map_err(|_| damage("it claims more pages than there can be"))?;
    let mut walk = Walk { file, page: meta.page, last: meta.last, seen: Vec::new(), visit };
    let length = file.metadata().map_err(Broken::Io)?.len();
    // Free pages may lie beyond the end; how many of them is bounded all the same, so that a damaged number takes no memory.
    if walk.last > (length / meta.page as u64).saturating_mul(64).saturating_add(1 << 20) {
        return Err(damage(format!(
            "its header says that page {} is in use, the file has {length} bytes",
            walk.last
        )));
    }
    walk.seen.resize(words, 0);
    walk.claim(0..2)?;
    let mut free = 0;
    walk.tree(&meta.free, &Kind::Free(meta.txn), &mut |walk, _, _, list| {
        let numbers = list.len() / 8;
        let count =
            long(list, 0).and_then(|count| usize::try_from(count).ok()).filter(|&count| count < numbers);
        let count = count.ok_or_else(|| damage("a list of free pages is longer than its record"))?;
        let mut before = u64::MAX;
        for number in (1..=count).filter_map(|index| long(list, index * 8)) {
            if number >= before {
                return Err(damage("a list of free pages is out of order"));
            }
            before = number;
            walk.claim(number..number.saturating_add(1))?;
        }
        free += count as u64;
        Ok(())
    })?;
    let mut tables = Vec::new();
    walk.tree(&meta.main, &Kind::Main, &mut |_, _, name, record| {
        let name = std::str::from_utf8(name).map_err(|_| damage("the name of a table is no text"))?;
        let tree = Tree::read(record, 0).filter(|tree| tree.flags == 0 && record.len() == Tree::BYTES);
        tables.push((
            name.to_owned(),
            tree.ok_or_else(|| damage(format!("the record of table {name} is none")))?,
        ));
        Ok(())
    })?;
    for (name, tree) in &tables {
        walk.tree(tree, &Kind::Table(name), &mut |walk, name, key, value| {
            (walk.visit)(name, key, value).map_err(Broken::Damage)
        })?;
    }
    match (0..=walk.last).find(|&number| !walk.is_seen(number)) {
        Some(number) => Err(damage(format!("page {number} is neither in use nor free"))),
        None => Ok(Some(Walked { page: meta.page, pages: meta.last + 1, free })),
    }
}

/// What a tree holds.
enum Kind<'n> {
    /// Lists of free pages, by the number of the transaction that freed them, up to this one.
    Free(u64),
    /// The records of the tables' trees.
    Main,
    /// Records.
    Table(&'n str),
}

/// What is done with each leaf of a tree: the table's name, key and data.
type Leaf<'l, 'f, 'v> = dyn FnMut(&mut Walk<'f, 'v>, &str, &[u8], &[u8]) -> Result<(), Broken> + 'l;

struct Walk<'f, 'v> {
    file: &'f File,
    page: usize,
    last: u64,
    /// One bit for each page that was met.
    seen: Vec<u64>,
    visit: &'f mut Visit<'v>,
}

impl<'f, 'v> Walk<'f, 'v> {
    fn tree(&mut self, tree: &Tree, kind: &Kind<'_>, leaf: &mut Leaf<'_, 'f, 'v>) -> Result<(), Broken> {
        let mut found = Tree { depth: tree.depth, root: tree.root, flags: tree.flags, ..Tree::default() };
        if tree.root == Tree::NONE {
            found.depth = 0;
        } else {
            let depth = Some(tree.depth).filter(|depth| (1..=DEEPEST).contains(depth));
            let depth =
                depth.ok_or_else(|| damage(format!("{} is {} levels deep", kind.name(), tree.depth)))?;
            self.level(tree.root, depth, (None, None), kind, &mut found, leaf)?;
        }
        if found == *tree {
            return Ok(());
        }
        Err(damage(format!("{} should hold {}, and holds {}", kind.name(), tree.counts(), found.counts())))
    }

    /// Walks a page and all below it, whose keys must be at or above the first bound and below the second.
    fn level(
        &mut self,
        number: u64,
        depth: u16,
        bounds: (Option<&[u8]>, Option<&[u8]>),
        kind: &Kind<'_>,
        found: &mut Tree,
        leaf: &mut Leaf<'_, 'f, 'v>,
    ) -> Result<(), Broken> {
        self.claim(number..number.saturating_add(1))?;
        let page = self.read(number, 0, self.page)?;
        let wrong = |what: &str| damage(format!("page {number} ({}) {what}", kind.name()));
        let is_leaf = depth == 1;
        let head = Header::read(&page).filter(|head| head.number == number);
        let head = head.ok_or_else(|| wrong("does not bear its own number"))?;
        if head.flags != if is_leaf { LEAF } else { BRANCH } {
            return Err(wrong("is not of the kind that its place in the tree asks for"));
        }
        let nodes = nodes(&page, is_leaf).ok_or_else(|| wrong("has entries that do not lie within it"))?;
        if nodes.len() < if is_leaf { 1 } else { 2 } && !matches!(kind, Kind::Free(_)) {
            return Err(wrong("has too few entries"));
        }
        let mut before = bounds.0;
        for (index, node) in nodes.iter().enumerate() {
            // The first key of a branch is never looked at: everything below the second belongs to it.
            if is_leaf || index > 0 {
                let above = before.is_none_or(|before| {
                    kind.compare(before, node.key)
                        < if index == 0 { Ordering::Greater } else { Ordering::Equal }
                });
                let below = bounds.1.is_none_or(|bound| kind.compare(node.key, bound) == Ordering::Less);
                if !(above && below && kind.may_have(node.key)) {
                    return Err(wrong("has a key that is out of place"));
                }
                before = Some(node.key);
            }
        }
        if !is_leaf {
            found.branches += 1;
            for (index, node) in nodes.iter().enumerate() {
                let lower = if index == 0 { bounds.0 } else { Some(node.key) };
                let upper = nodes.get(index + 1).map(|next| next.key).or(bounds.1);
                self.level(node.child, depth - 1, (lower, upper), kind, found, leaf)?;
            }
            return Ok(());
        }
        found.leaves += 1;
        for node in nodes {
            found.entries += 1;
            match (kind, node.flags) {
                (Kind::Main, SUB_TREE) | (Kind::Free(_) | Kind::Table(_), 0) => {
                    leaf(self, kind.name(), node.key, node.data)?;
                }
                (Kind::Free(_) | Kind::Table(_), BIG) => {
                    let first = long(node.data, 0).ok_or_else(|| wrong("has an entry that leads nowhere"))?;
                    let data = self.overflow(first, node.size, found)?;
                    leaf(self, kind.name(), node.key, &data)?;
                }
                (_, flags) => return Err(wrong(&format!("has an entry with the flags {flags:#x}"))),
            }
        }
        Ok(())
    }

    /// A value that has pages of its own.
    fn overflow(&mut self, first: u64, size: usize, found: &mut Tree) -> Result<Vec<u8>, Broken> {
        let needed = ((HEADER - 1 + size) / self.page + 1) as u64;
        self.claim(first..first.saturating_add(needed))?;
        let head = Header::read(&self.read(first, 0, HEADER)?)
            .filter(|head| head.number == first && head.flags == OVERFLOW)
            .map(|head| u64::from(head.pages));
        // A value that is written again in its transaction, and is shorter now, stays in the pages that it has.
        let Some(pages) = head.filter(|pages| *pages >= needed) else {
            return Err(damage(format!(
                "page {first} is not the first of the {needed} or more that hold a large value"
            )));
        };
        if pages > needed {
            self.claim(first + needed..first.saturating_add(pages))?;
        }
        found.overflow += pages;
        self.read(first, HEADER, size)
    }

    /// Notes that pages are met. Each may be met once.
    fn claim(&mut self, numbers: Range<u64>) -> Result<(), Broken> {
        if numbers.end > self.last + 1 || numbers.is_empty() {
            return Err(damage(format!(
                "something leads to page {}, the last one is {}",
                numbers.end - 1,
                self.last
            )));
        }
        for number in numbers {
            if self.is_seen(number) {
                return Err(damage(format!("page {number} is used twice")));
            }
            if let Some(word) = usize::try_from(number / 64).ok().and_then(|at| self.seen.get_mut(at)) {
                *word |= 1 << (number % 64);
            }
        }
        Ok(())
    }

    fn is_seen(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|at| self.seen.get(at));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    fn read(&self, number: u64, from: usize, size: usize) -> Result<Vec<u8>, Broken> {
        let mut bytes = vec![0; size];
        read(self.file, &mut bytes, number.saturating_mul(self.page as u64).saturating_add(from as u64))?;
        Ok(bytes)
    }
}

impl Kind<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Free(_) => "the list of free pages",
            Self::Main => "the list of tables",
            Self::Table(name) => name,
        }
    }

    fn compare(&self, one: &[u8], other: &[u8]) -> Ordering {
        match self {
            Self::Free(_) => long(one, 0).cmp(&long(other, 0)),
            Self::Main | Self::Table(_) => one.cmp(other),
        }
    }

    fn may_have(&self, key: &[u8]) -> bool {
        match self {
            Self::Free(newest) => key.len() == 8 && long(key, 0).is_some_and(|txn| txn <= *newest),
            Self::Main | Self::Table(_) => (1..=LONGEST_KEY).contains(&key.len()),
        }
    }
}

/// LMDB's cursors go no deeper.
const DEEPEST: u16 = 32;
const LONGEST_KEY: usize = 511;
