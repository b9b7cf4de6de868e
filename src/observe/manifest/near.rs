//! Words that were probably meant.

/// Whether two words differ by one letter more, less, changed or swapped with its neighbour, or in case only.
pub(super) fn is_near(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.to_lowercase().chars().collect());
    let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[same..], &b[same..]);
    let rest = |x: &[char], n: usize| x.get(n..).map(<[char]>::to_vec);
    let swapped = || a.len() >= 2 && b.len() >= 2 && a[0] == b[1] && a[1] == b[0] && rest(a, 2) == rest(b, 2);
    (a.is_empty() && b.is_empty())
        || (rest(a, 1).is_some() && (rest(a, 1) == rest(b, 1) || rest(a, 1).as_deref() == Some(b)))
        || rest(b, 1).as_deref() == Some(a)
        || swapped()
}
