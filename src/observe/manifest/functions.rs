//! The functions that expressions may call: these, and no others.
//!
//! # Guarantees
//! All are pure and give the same bits on every machine, which is why there are no logarithms, powers or sines: their last digit depends on
//! the processor. What a function may build is bounded.

use rhai::packages::{ArithmeticPackage, LogicPackage, Package};
use rhai::{
    Array, Dynamic, Engine, EvalAltResult, FLOAT, FnPtr, INT, ImmutableString, Map, NativeCallContext,
    Position,
};
use serde_json::Number;

use super::doc::Doc;
use super::expression::{MAX_LIST_BYTES, MAX_TEXT_BYTES};
use super::float;
use super::meter;
use super::number;
use super::value::{self, List, Object};

/// How much of a text or a document counts as one step.
const BYTES_PER_STEP: usize = 64;

pub(super) type Outcome<T> = Result<T, Box<EvalAltResult>>;

/// Registers all of them.
pub(super) fn register(engine: &mut Engine) {
    ArithmeticPackage::new().register_into_engine(engine);
    LogicPackage::new().register_into_engine(engine);
    register_access(engine);
    register_lists(engine);
    register_texts(engine);
    register_numbers(engine);
    float::register(engine);
}

/// Fields, items and comparison.
fn register_access(engine: &mut Engine) {
    engine.register_type_with_name::<List>("list").register_type_with_name::<Object>("object");
    // What is not there is (), and so is everything in it.
    engine.register_indexer_get(|_: &mut (), _: &str| Dynamic::UNIT);
    engine.register_indexer_get(|_: &mut (), _: INT| Dynamic::UNIT);
    engine.register_indexer_get(|list: &mut List, index: INT| list.at(index));
    engine.register_indexer_get(|object: &mut Object, name: &str| object.get(name));

    engine.register_fn("==", |a: List, b: Dynamic| same(&Dynamic::from(a), &b));
    engine.register_fn("==", |a: Dynamic, b: List| same(&a, &Dynamic::from(b)));
    engine.register_fn("==", |a: Object, b: Dynamic| same(&Dynamic::from(a), &b));
    engine.register_fn("==", |a: Dynamic, b: Object| same(&a, &Dynamic::from(b)));
    engine.register_fn("!=", |a: List, b: Dynamic| same(&Dynamic::from(a), &b).map(|same| !same));
    engine.register_fn("!=", |a: Dynamic, b: List| same(&a, &Dynamic::from(b)).map(|same| !same));
    engine.register_fn("!=", |a: Object, b: Dynamic| same(&Dynamic::from(a), &b).map(|same| !same));
    engine.register_fn("!=", |a: Dynamic, b: Object| same(&a, &Dynamic::from(b)).map(|same| !same));

    // Of literals, which are the language's own arrays and maps.
    engine.register_fn("==", |a: Array, b: Dynamic| same(&Dynamic::from(a), &b));
    engine.register_fn("==", |a: Dynamic, b: Array| same(&a, &Dynamic::from(b)));
    engine.register_fn("==", |a: Map, b: Dynamic| same(&Dynamic::from(a), &b));
    engine.register_fn("==", |a: Dynamic, b: Map| same(&a, &Dynamic::from(b)));
    engine.register_fn("!=", |a: Array, b: Dynamic| same(&Dynamic::from(a), &b).map(|same| !same));
    engine.register_fn("!=", |a: Dynamic, b: Array| same(&a, &Dynamic::from(b)).map(|same| !same));
    engine.register_fn("!=", |a: Map, b: Dynamic| same(&Dynamic::from(a), &b).map(|same| !same));
    engine.register_fn("!=", |a: Dynamic, b: Map| same(&a, &Dynamic::from(b)).map(|same| !same));

    engine.register_fn("contains", |whole: Dynamic, part: Dynamic| -> Outcome<bool> {
        if value::is_list(&whole) {
            for item in items(&whole, "contains")? {
                if same(&item, &part)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        let name = text(&part, "contains")?;
        if let Some(object) = whole.read_lock::<Object>() {
            return Ok(object.has(&name));
        }
        if let Some(map) = whole.read_lock::<Map>() {
            return Ok(map.contains_key(name.as_str()));
        }
        let whole = text(&whole, "contains")?;
        charge_text(&whole)?;
        Ok(whole.contains(name.as_str()))
    });
    engine.register_fn("len", |whole: Dynamic| length(&whole));
    engine.register_fn("is_empty", |whole: Dynamic| length(&whole).map(|len| len == 0));
    engine.register_fn("keys", |object: Dynamic| -> Outcome<List> {
        Ok(List::new(fields(&object, "keys")?.into_iter().map(|(key, _)| key.into()).collect()))
    });
    engine.register_fn("values", |object: Dynamic| -> Outcome<List> {
        Ok(List::new(fields(&object, "values")?.into_iter().map(|(_, value)| value).collect()))
    });
    engine.register_fn("entries", |object: Dynamic| -> Outcome<List> {
        let entry = |(key, value): (ImmutableString, Dynamic)| {
            Dynamic::from(Object::new(vec![("key".into(), key.into()), ("value".into(), value)]))
        };
        Ok(List::new(fields(&object, "entries")?.into_iter().map(entry).collect()))
    });
}

fn register_lists(engine: &mut Engine) {
    engine.register_fn("filter", |context: NativeCallContext, list: Dynamic, test: FnPtr| -> Outcome<List> {
        let mut kept = Vec::new();
        for item in items(&list, "filter")? {
            if test.call_within_context::<bool>(&context, (item.clone(),))? {
                kept.push(item);
            }
        }
        Ok(List::new(kept))
    });
    engine.register_fn("map", |context: NativeCallContext, list: Dynamic, change: FnPtr| -> Outcome<List> {
        let mut changed = Vec::new();
        let mut bytes = 0;
        for item in items(&list, "map")? {
            let item: Dynamic = change.call_within_context(&context, (item,))?;
            bytes += value::weight(&item);
            if bytes > MAX_LIST_BYTES {
                return fail(format!("map built a list of more than {MAX_LIST_BYTES} bytes"));
            }
            changed.push(item);
        }
        Ok(List::new(changed))
    });
    engine.register_fn(
        "find",
        |context: NativeCallContext, list: Dynamic, test: FnPtr| -> Outcome<Dynamic> {
            for item in items(&list, "find")? {
                if test.call_within_context::<bool>(&context, (item.clone(),))? {
                    return Ok(item);
                }
            }
            Ok(Dynamic::UNIT)
        },
    );
    engine.register_fn("some", |context: NativeCallContext, list: Dynamic, test: FnPtr| -> Outcome<bool> {
        for item in items(&list, "some")? {
            if test.call_within_context::<bool>(&context, (item,))? {
                return Ok(true);
            }
        }
        Ok(false)
    });
    engine.register_fn("all", |context: NativeCallContext, list: Dynamic, test: FnPtr| -> Outcome<bool> {
        for item in items(&list, "all")? {
            if !test.call_within_context::<bool>(&context, (item,))? {
                return Ok(false);
            }
        }
        Ok(true)
    });
    engine.register_fn("sort", |list: Dynamic| -> Outcome<List> {
        sorted(items(&list, "sort")?.into_iter().map(|item| (item.clone(), item)).collect())
    });
    engine.register_fn("sort", |context: NativeCallContext, list: Dynamic, by: FnPtr| -> Outcome<List> {
        let keyed = |item: Dynamic| Ok((by.call_within_context(&context, (item.clone(),))?, item));
        sorted(items(&list, "sort")?.into_iter().map(keyed).collect::<Outcome<_>>()?)
    });
    engine.register_fn("reverse", |list: Dynamic| -> Outcome<List> {
        Ok(List::new(items(&list, "reverse")?.into_iter().rev().collect()))
    });
    engine.register_fn("take", |list: Dynamic, count: INT| -> Outcome<List> {
        Ok(List::new(items(&list, "take")?.into_iter().take(usize::try_from(count).unwrap_or(0)).collect()))
    });
    engine.register_fn("join", |list: Dynamic, separator: &str| -> Outcome<ImmutableString> {
        let mut joined = String::new();
        for (i, item) in items(&list, "join")?.iter().enumerate() {
            if i > 0 {
                joined.push_str(separator);
            }
            joined.push_str(&text_of(item)?);
            bound(joined.len())?;
        }
        charge_text(&joined)?;
        Ok(joined.into())
    });
    engine.register_fn("sum", |list: Dynamic| -> Outcome<Dynamic> {
        items(&list, "sum")?.iter().try_fold(Dynamic::from(0 as INT), |sum, item| {
            let total = number::add(&number_of(&sum, "sum")?, &number_of(item, "sum")?).or_else(fail)?;
            Ok(value::of_doc(&Doc::Number(total)))
        })
    });
    engine.register_fn("min", |list: Dynamic| -> Outcome<Dynamic> {
        Ok(sort_plain(&list, "min")?.into_iter().next().unwrap_or(Dynamic::UNIT))
    });
    engine.register_fn("max", |list: Dynamic| -> Outcome<Dynamic> {
        Ok(sort_plain(&list, "max")?.into_iter().next_back().unwrap_or(Dynamic::UNIT))
    });
}

fn register_texts(engine: &mut Engine) {
    engine.register_fn("to_string", |value: Dynamic| text_of(&value));
    engine.register_fn("+", |text: &str, number: INT| append(text, &number.to_string()));
    engine.register_fn("+", |text: &str, number: u64| append(text, &number.to_string()));
    engine.register_fn("+", |text: &str, number: FLOAT| append(text, &text_of(&number.into())?));
    engine.register_fn("+", |text: &str, truth: bool| append(text, &truth.to_string()));
    engine.register_fn("+", |text: &str, _: ()| -> Outcome<String> {
        fail(format!("cannot add () to {:?}, so nothing is there", cut(text)))
    });
    engine.register_fn("+", append);
    engine.register_fn("starts_with", |text: &str, start: &str| {
        charge_text(start).map(|()| text.starts_with(start))
    });
    engine.register_fn("ends_with", |text: &str, end: &str| charge_text(end).map(|()| text.ends_with(end)));
    engine.register_fn("to_upper", |text: &str| charge_text(text).map(|()| text.to_uppercase()));
    engine.register_fn("to_lower", |text: &str| charge_text(text).map(|()| text.to_lowercase()));
    engine.register_fn("trim", |text: &str| charge_text(text).map(|()| text.trim().to_owned()));
    engine.register_fn("split", |text: &str, separator: &str| -> Outcome<List> {
        charge_text(text)?;
        charge(text.matches(separator).count())?;
        Ok(List::new(text.split(separator).map(Into::into).collect()))
    });
    engine.register_fn("sub_string", |text: &str, start: INT| sub_string(text, start, INT::MAX));
    engine.register_fn("sub_string", sub_string);
    engine.register_fn("replace", |text: &str, from: &str, to: &str| -> Outcome<String> {
        charge_text(text)?;
        bound(text.len().saturating_add(text.matches(from).count().saturating_mul(to.len())))?;
        let replaced = text.replace(from, to);
        charge_text(&replaced).map(|()| replaced)
    });
    engine.register_fn("parse_int", |text: &str| -> Outcome<INT> {
        charge_text(text)?;
        text.parse().or_else(|_| fail(format!("parse_int found {:?}, expected an integer", cut(text))))
    });
    engine.register_fn("parse_float", |text: &str| -> Outcome<FLOAT> {
        charge_text(text)?;
        match text.parse::<FLOAT>() {
            Ok(float) if float.is_finite() => Ok(float),
            _ => fail(format!("parse_float found {:?}, expected a number", cut(text))),
        }
    });
}

fn register_numbers(engine: &mut Engine) {
    engine.register_fn("floor", FLOAT::floor);
    engine.register_fn("ceiling", FLOAT::ceil);
    engine.register_fn("round", FLOAT::round);
    engine.register_fn("floor", |x: INT| x);
    engine.register_fn("ceiling", |x: INT| x);
    engine.register_fn("round", |x: INT| x);
    engine.register_fn("to_int", |x: INT| x);
    engine.register_fn("to_int", |x: FLOAT| -> Outcome<INT> {
        match number::to_i64(x.trunc()) {
            Some(integer) => Ok(integer),
            None => fail(format!("to_int found {x}, which is beyond 64 bits")),
        }
    });
    engine.register_fn("to_float", |x: FLOAT| x);
    engine.register_fn("to_float", |x: Dynamic| -> Outcome<FLOAT> {
        Ok(number_of(&x, "to_float")?.as_f64().unwrap_or(FLOAT::NAN))
    });
    // Integers above INT compare with the others by value.
    macro_rules! compare {
        ($($op:literal $test:ident),*) => {$(
            engine.register_fn($op, |a: u64, b: u64| a.cmp(&b).$test());
            engine.register_fn($op, |a: u64, b: INT| i128::from(a).cmp(&i128::from(b)).$test());
            engine.register_fn($op, |a: INT, b: u64| i128::from(a).cmp(&i128::from(b)).$test());
            engine.register_fn($op, |a: u64, b: FLOAT| number::compare_float(a.into(), b).is_some_and(|o| o.$test()));
            engine.register_fn($op, |a: FLOAT, b: u64| number::compare_float(b.into(), a).is_some_and(|o| o.reverse().$test()));
        )*};
    }
    // What has no order is an error, not false: otherwise a field that is not there would silently be neither more nor less than anything.
    macro_rules! refuse {
        ($($a:ty, $b:ty);* $(;)?) => {$(for op in ["<", "<=", ">", ">="] {
            engine.register_fn(op, move |a: $a, b: $b| unordered(op, &Dynamic::from(a), &Dynamic::from(b)));
            engine.register_fn(op, move |b: $b, a: $a| unordered(op, &Dynamic::from(b), &Dynamic::from(a)));
        })*};
    }
    refuse! {
        (), INT; (), FLOAT; (), u64; (), ImmutableString; (), bool; (), List; (), Object;
        ImmutableString, INT; ImmutableString, FLOAT; ImmutableString, u64; ImmutableString, bool;
        bool, INT; bool, FLOAT; bool, u64;
    }
    engine.register_fn("<", |(): (), (): ()| unordered("<", &Dynamic::UNIT, &Dynamic::UNIT));
    engine.register_fn(">", |(): (), (): ()| unordered(">", &Dynamic::UNIT, &Dynamic::UNIT));
    engine.register_fn("<=", |(): (), (): ()| unordered("<=", &Dynamic::UNIT, &Dynamic::UNIT));
    engine.register_fn(">=", |(): (), (): ()| unordered(">=", &Dynamic::UNIT, &Dynamic::UNIT));
    compare!("==" is_eq, "!=" is_ne, "<" is_lt, "<=" is_le, ">" is_gt, ">=" is_ge);
    // The engine's own would be one step, however long the texts are.
    macro_rules! compare_texts {
        ($($op:literal $test:ident),*) => {$(
            engine.register_fn($op, |a: &str, b: &str| -> Outcome<bool> {
                charge_text(if a.len() < b.len() { a } else { b })?;
                Ok(a.cmp(b).$test())
            });
        )*};
    }
    compare_texts!("==" is_eq, "!=" is_ne, "<" is_lt, "<=" is_le, ">" is_gt, ">=" is_ge);
}

/// Sorts pairs by their first half: all numbers or all texts.
fn sorted(mut keyed: Vec<(Dynamic, Dynamic)>) -> Outcome<List> {
    charge(keyed.iter().map(|(key, _)| value::weight(key)).sum::<usize>() / BYTES_PER_STEP)?;
    let texts = keyed.iter().filter(|(key, _)| key.is_string()).count();
    if texts == keyed.len() {
        keyed.sort_by_cached_key(|(key, _)| key.read_lock::<ImmutableString>().map(|text| text.clone()));
    } else {
        let mut numbers: Vec<_> = keyed
            .into_iter()
            .map(|(key, item)| Ok((number_of(&key, "sort")?, item)))
            .collect::<Outcome<_>>()?;
        numbers.sort_by(|(a, _), (b, _)| number::compare(a, b));
        return Ok(List::new(numbers.into_iter().map(|(_, item)| item).collect()));
    }
    Ok(List::new(keyed.into_iter().map(|(_, item)| item).collect()))
}

fn sort_plain(list: &Dynamic, function: &str) -> Outcome<Vec<Dynamic>> {
    let sorted = sorted(items(list, function)?.into_iter().map(|item| (item.clone(), item)).collect())?;
    Ok(sorted.items.to_vec())
}

fn length(whole: &Dynamic) -> Outcome<INT> {
    let len = if let Some(list) = whole.read_lock::<List>() {
        list.items.len()
    } else if let Some(object) = whole.read_lock::<Object>() {
        object.fields.len()
    } else if let Some(items) = value::items(whole) {
        items.len()
    } else if let Some(fields) = value::fields(whole) {
        fields.len()
    } else {
        let text = text(whole, "len")?;
        charge_text(&text)?;
        text.chars().count()
    };
    Ok(INT::try_from(len).unwrap_or(INT::MAX))
}

fn items(value: &Dynamic, function: &str) -> Outcome<Vec<Dynamic>> {
    let items = value::items(value).map_or_else(|| wrong(function, "a list", value), Ok)?;
    charge(items.len())?;
    Ok(items)
}

fn fields(value: &Dynamic, function: &str) -> Outcome<Vec<(ImmutableString, Dynamic)>> {
    let fields = value::fields(value).map_or_else(|| wrong(function, "an object", value), Ok)?;
    charge(fields.len())?;
    Ok(fields)
}

fn same(a: &Dynamic, b: &Dynamic) -> Outcome<bool> {
    charge(value::weight(a).min(value::weight(b)) / BYTES_PER_STEP)?;
    Ok(value::same(a, b))
}

fn unordered(op: &str, a: &Dynamic, b: &Dynamic) -> Outcome<bool> {
    fail(format!(
        "cannot do {op}: the left side is {}, the right side is {}",
        value::describe(a),
        value::describe(b)
    ))
}

fn sub_string(text: &str, start: INT, len: INT) -> Outcome<String> {
    charge_text(text)?;
    let (start, len) = (usize::try_from(start).unwrap_or(0), usize::try_from(len).unwrap_or(0));
    Ok(text.chars().skip(start).take(len).collect())
}

fn append(text: &str, more: &str) -> Outcome<String> {
    bound(text.len() + more.len())?;
    charge_text(text)?;
    charge_text(more)?;
    Ok(format!("{text}{more}"))
}

fn text(value: &Dynamic, function: &str) -> Outcome<ImmutableString> {
    match value.read_lock::<ImmutableString>() {
        Some(text) => Ok(text.clone()),
        None => match value.as_char() {
            Ok(c) => Ok(c.to_string().into()),
            Err(_) => wrong(function, "text", value),
        },
    }
}

fn number_of(value: &Dynamic, function: &str) -> Outcome<Number> {
    match value::number(value) {
        Some(number) => Ok(number),
        None => wrong(function, "a number", value),
    }
}

/// A text as it is, everything else as JSON; nothing has no text.
fn text_of(value: &Dynamic) -> Outcome<ImmutableString> {
    if value.is_unit() {
        return fail("to_string found (), so nothing is there");
    }
    if let Ok(text) = value.as_immutable_string_ref() {
        return Ok(text.clone());
    }
    charge(value::weight(value) / BYTES_PER_STEP)?;
    match value::to_doc(value, MAX_TEXT_BYTES) {
        Ok(Doc::Text(text)) => Ok(text.into_owned().into()),
        Ok(doc) => Ok(String::from_utf8_lossy(&doc.bytes()).into_owned().into()),
        Err(error) => fail(format!("to_string {error}")),
    }
}

fn bound(bytes: usize) -> Outcome<()> {
    if bytes > MAX_TEXT_BYTES {
        fail(format!("built a text of more than {MAX_TEXT_BYTES} bytes"))
    } else {
        Ok(())
    }
}

fn wrong<T>(function: &str, expected: &str, found: &Dynamic) -> Outcome<T> {
    fail(format!("{function} found {}, expected {expected}", value::describe(found)))
}

/// Charges for work on so many items.
fn charge(items: usize) -> Outcome<()> {
    if meter::charge(items) {
        Ok(())
    } else {
        Err(Box::new(EvalAltResult::ErrorTooManyOperations(Position::NONE)))
    }
}

/// Charges for reading a text.
fn charge_text(text: &str) -> Outcome<()> {
    charge(text.len() / BYTES_PER_STEP)
}

pub(super) fn fail<T>(message: impl Into<String>) -> Outcome<T> {
    let message = message.into();
    meter::fail(&message);
    Err(Box::new(EvalAltResult::ErrorRuntime(message.into(), Position::NONE)))
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}
