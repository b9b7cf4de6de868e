//! Expressions: one expression of the language Rhai, compiled once, metered, without statements, I/O or a clock.
//!
//! # Guarantees
//! The same variables give the same result on every machine. An evaluation ends: after at most [`MAX_STEPS`] steps ([`MAX_VIEW_STEPS`] for a view), having built no
//! text of more than [`MAX_TEXT_BYTES`] and no list of more than [`MAX_LIST_BYTES`].
//!
//! There are no loops, no assignments and no named functions, so that nothing can be nested without end: dropping a value that is a hundred
//! thousand levels deep would overflow the stack, which no meter catches.
//!
//! What functions and operators do with a text is charged by its length.
//!
//! # Caveats
//! Two things that the engine does by itself are one step however long the text is: building one with `${…}`, and taking one character of it.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use rhai::{AST, Dynamic, Engine, EvalAltResult, Position, Scope};

use super::doc::Doc;
use super::{functions, known, literal, meter, value};

/// Steps that one evaluation may take.
pub const MAX_STEPS: u64 = 100_000;
/// Steps that one evaluation of a view may take.
pub const MAX_VIEW_STEPS: u64 = 5_000_000;
/// Longest text that an expression may build, in bytes.
pub const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Largest list that `map` may build, in bytes of JSON or so.
pub const MAX_LIST_BYTES: usize = 16 * 1024 * 1024;

/// Items of the arrays and maps that are written out in an expression.
const MAX_LITERAL_ITEMS: usize = 10_000;
const MAX_CALLS: usize = 16;
const MAX_NESTING: usize = 48;

/// The variables that some expressions see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variables {
    /// `source`, `feed`, `at`, `at_ms` and `body`.
    Observation,
    /// Those, and `key`, `before` and `after`.
    Change,
    /// `tables`.
    View,
    /// `tables` and `sources`.
    Condition,
}

/// A compiled expression.
#[derive(Clone)]
pub(super) struct Expression {
    text: Box<str>,
    ast: AST,
    max_steps: u64,
}

/// Why a text is no expression, and where in the text (line and column from 1).
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) message: String,
}

/// The values of the variables.
#[derive(Debug)]
pub(super) struct Bindings(RefCell<Scope<'static>>);

impl Variables {
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Observation => &["source", "feed", "at", "at_ms", "body"],
            Self::Change => &["source", "feed", "at", "at_ms", "body", "key", "before", "after"],
            Self::View => &["tables"],
            Self::Condition => &["tables", "sources"],
        }
    }
}

impl Invalid {
    fn new(message: String, position: Position) -> Self {
        Self { line: position.line().unwrap_or(1), column: position.position().unwrap_or(1).max(1), message }
    }
}

impl Bindings {
    pub(super) fn new(variables: impl IntoIterator<Item = (&'static str, Dynamic)>) -> Self {
        let mut scope = Scope::new();
        for (name, value) in variables {
            scope.push_constant_dynamic(name, value);
        }
        Self(RefCell::new(scope))
    }
}

impl Expression {
    /// Compiles a text that may use these variables and no others.
    pub(super) fn compile(text: &str, variables: Variables) -> Result<Self, Invalid> {
        let max_steps = match variables {
            Variables::Observation | Variables::Change => MAX_STEPS,
            Variables::View | Variables::Condition => MAX_VIEW_STEPS,
        };
        // Variables without a value, not constants: the optimizer would put the value of a constant into the program.
        let mut scope = Scope::new();
        for name in variables.names() {
            scope.push_dynamic(*name, Dynamic::UNIT);
        }
        literal::begin();
        let compiled = ENGINE.compile_expression_with_scope(&scope, text);
        if let Some((message, position)) = literal::end() {
            return Err(Invalid::new(message, position));
        }
        let ast = compiled.map_err(|error| {
            Invalid::new(explain_syntax(&error.err_type().to_string(), variables), error.position())
        })?;
        if let Some((message, position)) = known::unknown_function(&ast) {
            return Err(Invalid::new(message, position));
        }
        Ok(Self { text: text.into(), ast, max_steps })
    }

    /// Checks that the tables that it asks for are among these.
    pub(super) fn check_tables(&self, names: &[&str]) -> Result<(), Invalid> {
        known::unknown_table(&self.ast, names)
            .map_or(Ok(()), |(message, position)| Err(Invalid::new(message, position)))
    }

    /// The text it was compiled from.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Its result, of at most `limit` bytes or so; `more` are variables beyond those that are bound.
    pub(super) fn evaluate(
        &self,
        bindings: &Bindings,
        more: impl IntoIterator<Item = (&'static str, Dynamic)>,
        limit: usize,
    ) -> Result<Doc<'static>, String> {
        let mut scope = bindings.0.borrow_mut();
        let bound = scope.len();
        for (name, value) in more {
            scope.push_constant_dynamic(name, value);
        }
        // The engine has internal checks that panic; no manifest may take the partition down with it.
        meter::begin(self.max_steps);
        let result =
            catch_unwind(AssertUnwindSafe(|| ENGINE.eval_ast_with_scope::<Dynamic>(&mut scope, &self.ast)));
        let failure = meter::end();
        scope.rewind(bound);
        match (result, failure) {
            (Ok(Ok(value)), None) => value::to_doc(&value, limit),
            (Ok(Ok(_)), Some(failure)) => Err(failure),
            (Ok(Err(error)), _) => Err(self.explain(*error)),
            (Err(_), _) => Err("failed inside the expression engine".to_owned()),
        }
    }

    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the enum is not ours and has thirty kinds, which say what they are"
    )]
    fn explain(&self, error: EvalAltResult) -> String {
        let (error, position) = innermost(error);
        let place = match (position.line(), position.position()) {
            (Some(1), Some(column)) => format!(" at column {column}"),
            (Some(line), Some(column)) => format!(" at line {line}, column {column}"),
            _ => String::new(),
        };
        let what = match error {
            EvalAltResult::ErrorTooManyOperations(_) | EvalAltResult::ErrorTerminated(..) => {
                format!("took more than {} steps", self.max_steps)
            }
            EvalAltResult::ErrorStackOverflow(_) => format!("called functions more than {MAX_CALLS} deep"),
            EvalAltResult::ErrorDataTooLarge(what, _) => {
                format!("built something too large ({})", what.to_lowercase())
            }
            EvalAltResult::ErrorFunctionNotFound(call, _) => {
                format!("cannot do {}", call.replace("&str | ImmutableString | String", "text"))
            }
            EvalAltResult::ErrorRuntime(message, _) => message.to_string(),
            EvalAltResult::ErrorDotExpr(message, _) => {
                // "Unknown property 'x' - a getter is not registered for type 'i64'"
                let mut quoted = message.split('\'').skip(1).step_by(2);
                match (quoted.next(), quoted.next()) {
                    (Some(field), Some(kind)) => {
                        format!("found a value of type {kind} without a field {field}")
                    }
                    (_, _) => message,
                }
            }
            other => {
                let text = other.to_string();
                let mut chars = text.chars();
                chars.next().into_iter().flat_map(char::to_lowercase).chain(chars).collect()
            }
        };
        format!("{what}{place}")
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

static ENGINE: LazyLock<Engine> = LazyLock::new(engine);

fn engine() -> Engine {
    let mut engine = Engine::new_raw();
    engine
        .set_max_call_levels(MAX_CALLS)
        .set_max_expr_depths(MAX_NESTING, MAX_NESTING)
        .set_max_string_size(MAX_TEXT_BYTES)
        .set_max_array_size(MAX_LITERAL_ITEMS)
        .set_max_map_size(MAX_LITERAL_ITEMS)
        .set_max_functions(MAX_LITERAL_ITEMS)
        .set_strict_variables(true);
    // The engine's own count of steps begins anew in every closure that a function calls.
    engine.on_progress(|_| if meter::charge(1) { None } else { Some(Dynamic::UNIT) });
    // With the fast operators a text and () make a text, and a field that is not there goes unseen.
    engine.set_fast_operators(false);
    // `**` is a power, whose last digit depends on the processor. `call` would let a function call itself without a name.
    for symbol in [
        "eval",
        "print",
        "debug",
        "call",
        "Fn",
        "curry",
        "this",
        "type_of",
        "is_def_var",
        "is_def_fn",
        "is_shared",
        "**",
    ] {
        engine.disable_symbol(symbol);
    }
    // A closure that captures a variable would make it shared, and then a method on it could not run that closure ("data race"). A variable that the
    // resolver answers for is copied instead, which costs nothing for the kinds of values that are bound.
    #[allow(deprecated, reason = "marked so only because its signature may change")]
    engine.on_var(|name, _, context| Ok(context.scope().get(name).cloned()));
    #[allow(deprecated, reason = "marked so only because its signature may change")]
    engine.on_parse_token(|token, position, _| {
        literal::read(&token, position);
        token
    });
    functions::register(&mut engine);
    engine
}

/// The error within the calls of closures, whose generated names say nothing, and where it happened.
fn innermost(mut error: EvalAltResult) -> (EvalAltResult, Position) {
    let mut position = error.take_position();
    while let EvalAltResult::ErrorInFunctionCall(_, _, inner, _) = error {
        error = *inner;
        let inner = error.take_position();
        position = if inner.is_none() { position } else { inner };
    }
    (error, position)
}

fn explain_syntax(message: &str, variables: Variables) -> String {
    if let Some(name) = message.strip_prefix("Undefined variable: ") {
        return format!("there is no variable {name} here, only {}", variables.names().join(", "));
    }
    if message.ends_with("is a reserved keyword") {
        return format!("not an expression: {message}; a field of that name is written body[\"name\"]");
    }
    for statement in
        ["let", "const", "loop", "while", "for", "fn", "return", "do", "try", "throw", "{", "=", ";"]
    {
        if message == format!("Unexpected '{statement}'") {
            return format!(
                "found '{statement}', but this is one expression, without statements, loops or assignments"
            );
        }
    }
    format!("not an expression: {}", message.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r##"{"a": 1, "f": 2.5, "b": {"c": [3, 1, 2]}, "x": null, "$SYS": {"_meta_": {"state": "LEADER"}}, "t": "été",
        "big": 18446744073709551615, "peers": [{"id": "p1", "lag": 5}, {"id": "p2", "lag": 0}]}"##;

    fn bindings(body: &str) -> Bindings {
        Bindings::new([
            ("source", "n1".into()),
            ("feed", "raft".into()),
            ("at", "2026-01-02T03:04:05Z".into()),
            ("at_ms", 1_767_323_045_000_i64.into()),
            ("body", value::of_doc(&Doc::read(body.as_bytes()).unwrap())),
        ])
    }

    fn evaluate(text: &str) -> Result<String, String> {
        let expression = Expression::compile(text, Variables::Observation)
            .map_err(|e| format!("{}:{}: {}", e.line, e.column, e.message))?;
        let doc = expression.evaluate(&bindings(BODY), [], MAX_TEXT_BYTES)?;
        Ok(String::from_utf8(doc.bytes()).unwrap())
    }

    #[test]
    fn expressions_and_their_results() {
        for (text, expected) in [
            ("body.a + 1", "2"),
            ("body.a + body.f", "3.5"),
            ("body[\"$SYS\"]._meta_.state", "\"LEADER\""),
            ("body.missing.deeper", "null"),
            ("body.x ?? \"none\"", "\"none\""),
            ("body.x == () && body.a != ()", "true"),
            ("if body.a > 0 { \"up\" } else { \"down\" }", "\"up\""),
            ("switch source { \"n1\" => \"one\", _ => \"many\" }", "\"one\""),
            ("switch body.a > 0 { true if body.a == 1 => [1, 2], true => [], false => 0 }", "[1,2]"),
            ("`${source}/${body.a}`", "\"n1/1\""),
            ("source + \"/\" + body.a", "\"n1/1\""),
            ("#{b: body.b, a: [1, source]}", r#"{"a":[1,"n1"],"b":{"c":[3,1,2]}}"#),
            // A closure may use the very variable that its method is called on.
            ("body.b.c.map(|x| x * 10 + body.a)", "[31,11,21]"),
            ("body.b.c.map(|x| body.b.c.filter(|y| y < x).len())", "[2,0,1]"),
            ("body.b.c.filter(|x| x > 1).sort()", "[2,3]"),
            ("body.peers.sort(|p| p.lag).map(|p| p.id)", r#"["p2","p1"]"#),
            ("body.peers.find(|p| p.lag > 0).id", "\"p1\""),
            ("body.peers.find(|p| p.lag > 9)", "null"),
            ("body.peers.some(|p| p.lag > 4) && !body.peers.all(|p| p.lag > 4)", "true"),
            ("[body.b.c.sum(), body.b.c.min(), body.b.c.max(), [].sum(), [].max()]", "[6,1,3,0,null]"),
            ("[1, 2.5].sum()", "3.5"),
            ("body.b.c[0] + body.b.c[-1]", "5"),
            ("body.b.c[7]", "null"),
            ("body.b.c == [3, 1, 2] && body.b == #{c: body.b.c} && body.b != body", "true"),
            ("2 in body.b.c && \"a\" in body && !(\"zz\" in body) && \"té\" in body.t", "true"),
            ("body.b.keys() + [1]", "cannot do + (list, array)"),
            ("body.b.entries()", r#"[{"key":"c","value":[3,1,2]}]"#),
            ("body.b.values().len() + body.t.len() + body.b.len()", "5"),
            ("body.b.c.reverse().take(2)", "[2,1]"),
            ("body.b.c.join(\"-\") + [].is_empty()", "\"3-1-2true\""),
            ("body.b.to_string()", r#""{\"c\":[3,1,2]}""#),
            ("\" Ab \".trim().to_upper().to_lower().replace(\"a\", \"xyz\").sub_string(1, 2)", "\"yz\""),
            ("\"a,b\".split(\",\").len() + \"12\".parse_int() + \"1.5\".parse_float()", "15.5"),
            (
                "[2.5.round(), 2.7.floor(), 2.1.ceiling(), 4.0.sqrt(), 7.9.to_int(), 7.to_float(), (-3).abs()]",
                "[3.0,2.0,3.0,2.0,7,7.0,3]",
            ),
            ("[min(1, 2), max(1.5, 1)]", "[1,1.5]"),
            // An integer above 64 bits with a sign keeps its value, compares, and refuses arithmetic.
            (
                "[body.big, body.big > body.a, body.a < body.big, body.big == body.big, body.big > 1e19, body.big == 1]",
                "[18446744073709551615,true,true,true,true,false]",
            ),
        ] {
            let result = evaluate(text).unwrap_or_else(|e| e);
            assert!(
                result == expected || result.starts_with(expected),
                "{text}\n  gave {result}\n  not  {expected}"
            );
        }
    }

    #[test]
    fn a_failing_expression_says_what_was_found_and_where() {
        for (text, expected) in [
            ("body.missing + 1", "cannot do + ((), i64) at column 14"),
            ("body.a.b", "found a value of type i64 without a field b at column 8"),
            ("1 / (body.a - 1)", "division by zero: 1 / 0 at column 3"),
            ("9223372036854775807 + body.a", "addition overflow: 9223372036854775807 + 1 at column 21"),
            ("body.big + 1", "cannot do + (u64, i64) at column 10"),
            ("body.a.len()", "len found the number 1, expected text at column 8"),
            (
                "body.peers.map(|p| p.lag + p.id.zz)",
                "found a value of type string without a field zz at column 33",
            ),
            ("body.peers.sort()", "sort found an object of 2 fields, expected a number at column 12"),
            ("body.peers.filter(|p| p.lag)", "output type incorrect: i64 (expecting bool)"),
            ("\"x\".parse_int()", "parse_int found \"x\", expected an integer"),
            ("1.0 / 0.0", "division by zero: 1.0 / 0.0 at column 5"),
            ("body.f / 0 > 1.0", "division by zero: 2.5 / 0 at column 8"),
            ("1 % 0.0", "division by zero: 1 % 0.0"),
            ("0.0 / 0 == 0", "division by zero: 0.0 / 0"),
            ("1.7e308 * 10 > 0", "1.7e308 * 10 is beyond a 64-bit float"),
            ("-1.7e308 - 1.7e308", "-1.7e308 - 1.7e308 is beyond a 64-bit float"),
            ("(-4).sqrt()", "sqrt found -4.0, expected a number from 0"),
            ("(-9223372036854775807 - 1) / -1", "division overflow: -9223372036854775808 / -1"),
            ("`${source}/${body.missing}`", "to_string found (), so nothing is there"),
            (
                "body.missing < 1",
                "cannot do <: the left side is () (nothing is there), the right side is the number 1 at column 14",
            ),
            ("body.a >= body.t", "cannot do >=: the left side is the number 1, the right side is the text"),
            ("source + body.missing", "cannot add () to \"n1\", so nothing is there at column 8"),
            ("|x| x", "gave a Fn, which is no JSON"),
        ] {
            let error = evaluate(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}\n  said {error}\n  not  {expected}");
        }
    }

    #[test]
    fn what_is_not_an_expression_is_refused_with_its_place() {
        for (text, expected) in [
            ("1 +", "1:4: not an expression: Script is incomplete"),
            ("body.\n  a + * 4", "2:7: not an expression: Unexpected '*'"),
            ("bdy.a", "1:1: there is no variable bdy here, only source, feed, at, at_ms, body"),
            ("before.a", "1:1: there is no variable before here"),
            ("let x = 1; x", "1:1: found 'let', but this is one expression"),
            ("{ 1 }", "1:1: found '{'"),
            ("body.a = 2", "1:8: found '='"),
            ("1; 2", "1:2: found ';'"),
            ("loop {}", "1:1: found 'loop'"),
            ("while true {}", "1:1: found 'while'"),
            ("fn f() {}", "1:1: found 'fn'"),
            ("body.b.c.map(|x| { let y = x; y })", "1:20: found 'let'"),
            ("eval(\"1\")", "1:1: not an expression: reserved keyword 'eval' is disabled"),
            ("print(1)", "1:1: not an expression: reserved keyword 'print' is disabled"),
            ("2 ** 3", "1:3: not an expression: Unknown operator: '**'"),
            (
                "body.new",
                "1:6: not an expression: 'new' is a reserved keyword; a field of that name is written body[\"name\"]",
            ),
            ("import \"x\" as y", "1:1: "),
            ("(|f| f.call(f)).call(|f| f.call(f))", "1:8: "),
            (&"(".repeat(5000), "1:"),
            (&"[".repeat(5000), "1:"),
            (&"body.a + ".repeat(5000), "1:"),
        ] {
            let error = evaluate(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}\n  said {error}\n  not  {expected}");
        }
    }

    #[test]
    fn numbers_compare_by_their_exact_values() {
        for (text, expected) in [
            // Times a second apart, as floats; the smallest steps of a float; fractions that are not zero.
            ("1767323045000.0002 > 1767323045000.0", "true"),
            ("1.0000000000000002 == 1.0", "false"),
            ("1.0000000000000002 <= 1", "false"),
            ("1e-17 > 0", "true"),
            ("1e-17 != 0.0 && 0 < 1e-17", "true"),
            ("[1e300 < 1.0000000000000002e300, 0.1 + 0.2 == 0.3, 0.0 == -0.0]", "[true,false,true]"),
            ("9007199254740993 > 9007199254740992.0 && 9007199254740992.0 < 9007199254740993", "true"),
            ("[max(9007199254740993, 9007199254740992.0), min(1.0, 1)]", "[9007199254740993,1.0]"),
            (
                "[5 == 5.0, 5.0 in [5], 5 in [1.5, 5.0], [5] == [5.0], #{a: [5]} == #{a: [5.0]}]",
                "[true,true,true,true,true]",
            ),
            (
                "[body.b.c == [3.0, 1, 2.0], [3.0, 1, 2.0] != body.b.c, body.b == #{c: [3, 1.0, 2]}]",
                "[true,false,true]",
            ),
            ("[[5] == [6], [5] == 5, #{a: 1} == [1], #{a: 1} != #{b: 1}]", "[false,false,false,true]"),
            ("[7 / 2, 6 / 2, -7 / 2, body.a / 4]", "[3.5,3,-3.5,0.25]"),
            ("[7 % 2, 7.5 % 2, (7 / 2).to_int(), (7 / 2).floor()]", "[1,1.5,3,3.0]"),
        ] {
            assert_eq!(evaluate(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_would_mean_something_else_than_it_says_is_refused_with_what_to_write() {
        let beyond =
            |number: &str| format!("the number {number} is beyond a 64-bit integer: write {number}.0");
        for (text, expected) in [
            ("switch body.a { 1 => 2, _ => 3 }", "1:17: found the number 1 as a case of switch, where 1 and 1.0 are two cases: write if x == 1 {".to_owned()),
            ("switch source { \"a\" => 1, \"b\" | 2.5 => 2 }", "1:33: found the number 2.5 as a case of switch".to_owned()),
            ("switch source { \"a\" => [1, #{a: 2}], -3 => 2 }", "1:38: found the number".to_owned()),
            ("switch body.a { 0..5 => 2 }", "1:17: found the number 0 as a case of switch".to_owned()),
            ("switch body.b.c { [1] => 2 }", "1:19: found a list or an object as a case of switch".to_owned()),
            ("body.b.c.map(|x| switch x { 3 => 1, _ => x })", "1:29: found the number 3 as a case".to_owned()),
            ("switch source { \"a\" => switch feed { 7 => 1 } }", "1:38: found the number 7 as a case".to_owned()),
            ("body.a == 9223372036854775808", format!("1:11: {}", beyond("9223372036854775808"))),
            ("[1,\n 99999999999999999999]", format!("2:2: {}", beyond("99999999999999999999"))),
            ("body.f < 1e400", "1:10: the number 1e400 is beyond a 64-bit float".to_owned()),
            ("`${9223372036854775808}`", format!("1:4: {}", beyond("9223372036854775808"))),
        ] {
            let error = evaluate(text).expect_err(text);
            assert!(error.starts_with(&expected), "{text}\n  said {error}\n  not  {expected}");
        }
    }

    #[test]
    fn a_function_that_is_not_there_is_refused_with_what_was_probably_meant() {
        for (text, expected) in [
            ("sleep(1)", "1:1: there is no function sleep, only abs, all, ceiling, "),
            ("body.t.lenght()", "1:8: there is no function lenght, only abs"),
            ("body.t.length()", "1:8: there is no function length, did you mean list.len()?"),
            ("body.t.to_uper()", "1:8: there is no function to_uper, did you mean text.to_upper()?"),
            (
                "body.a + body.t.substring(1)",
                "1:17: there is no function substring, did you mean text.sub_string(start)",
            ),
            (
                "body.f.pow(2)",
                "1:8: there is no function pow, nor another whose last digit depends on the processor",
            ),
            ("body.b.c.map(|x| x.squared() + body.a)", "1:20: there is no function squared"),
            ("`${body.t.upper()}`", "1:11: there is no function upper, did you mean text.to_upper()?"),
            ("switch source { \"a\" => body.nope(), _ => 1 }", "1:29: there is no function nope"),
            ("if body.a > 0 { nope(1) } else { 2 }", "1:17: there is no function nope"),
            ("body.a ?? body.x.nope()", "1:18: there is no function nope"),
            ("body.b.c[nope()]", "1:10: there is no function nope"),
            ("body.b.c.take()", "1:10: found take with 0 arguments, expected list.take(3)"),
            ("min(1, 2, 3)", "1:1: found min with 3 arguments, expected list.min() or min(a, b)"),
            ("body.a.is_odd()", "1:8: there is no function is_odd"),
        ] {
            let error = evaluate(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}\n  said {error}\n  not  {expected}");
        }
    }

    #[test]
    fn a_hostile_expression_ends_within_its_budget() {
        let list = format!("{{\"l\": [{}0], \"s\": \"{}\"}}", "0,".repeat(9_999), "a".repeat(200_000));
        let bindings = bindings(&list);
        for text in [
            "body.l.map(|x| body.l.map(|y| body.l.map(|z| x + y + z)))",
            "body.l.map(|x| body.l)",
            "body.l.map(|x| body.s + x)",
            "body.l.map(|x| #{a: body, b: [body, body]})",
            "body.l.map(|x| body.l.sort().len())",
            "body.l.map(|x| body.l == body.l)",
            "body.l.filter(|x| body.s.split(\"\").len() > 0)",
            "body.l.filter(|x| body.s + x != \"\")",
            "body.l.filter(|x| body.s.to_upper() != body.s && `${body.s}` != \"\")",
            "body.l.some(|x| body.s.len() == 0 || \"b\" in body.s)",
            "`${body}`",
            "body.s.replace(\"a\", body.s)",
            "body.s + body.s + body.s",
            "[body.s, body.s, body.s]",
            "body.l.join(body.s)",
            "[body, [body, [body, [body, [body, [body]]]]]]",
        ] {
            let expression = Expression::compile(text, Variables::Observation)
                .unwrap_or_else(|e| panic!("{text}: {}", e.message));
            let error = expression.evaluate(&bindings, [], MAX_TEXT_BYTES).expect_err(text);
            assert!(
                [
                    "took more than",
                    "built something too large",
                    "map built a list",
                    "gave more than",
                    "to_string gave more than",
                    "built a text of"
                ]
                .iter()
                .any(|refusal| error.starts_with(refusal)),
                "{text} failed for another reason: {error}"
            );
        }
    }

    #[test]
    fn work_on_long_texts_is_taken_off_the_budget_whatever_time_it_takes() {
        let (list, text) = ("0,".repeat(999), "7".repeat(100_000));
        let bindings = bindings(&format!(
            "{{\"l\": [{list}0], \"s\": \"{text}\", \"t\": \"{text}\", \"z\": \"{}\"}}",
            text.replace('7', "0")
        ));
        for test in [
            "body.s.split(\"zzz\").len() == 1",
            "body.s.len() > 0",
            "!body.s.is_empty()",
            "!body.s.contains(\"zzz\")",
            "!(\"zzz\" in body.s)",
            "body.s.starts_with(body.t)",
            "body.s.ends_with(body.t)",
            "body.s.trim() != \"\"",
            "body.s.sub_string(0, 1) == \"7\"",
            "(\"0\" + body.s).sub_string(0, 1) == \"0\"",
            "(body.s + x) != \"\"",
            "\"a\".replace(\"a\", body.s) != \"\"",
            "[body.s, body.t].join(\"\") != \"\"",
            "[body.s, body.t].sort()[0] != \"\"",
            "[body.s, body.t].max() != \"\"",
            "body.z.parse_int() == 0",
            "body.z.parse_float() == 0.0",
            "body.s + body.t != \"\"",
            "body.s == body.t",
            "!(body.s != body.t)",
            "body.s <= body.t && body.s >= body.t && !(body.s < body.t) && !(body.s > body.t)",
        ] {
            let expression = Expression::compile(&format!("body.l.all(|x| {test})"), Variables::Observation)
                .unwrap_or_else(|e| panic!("{test}: {}", e.message));
            let ended = expression.evaluate(&bindings, [], MAX_TEXT_BYTES);
            assert!(ended.as_ref().is_err_and(|e| e.starts_with("took more than")), "{test}: {ended:?}");
        }
    }

    #[test]
    fn one_evaluation_leaves_nothing_behind_for_the_next() {
        let bindings = bindings(BODY);
        let captures = Expression::compile("body.b.c.map(|x| x + body.a)", Variables::Observation).unwrap();
        let plain = Expression::compile("body.b.c.len()", Variables::Change).unwrap();
        for _ in 0..3 {
            assert_eq!(captures.evaluate(&bindings, [], 1000).unwrap().bytes(), b"[4,2,3]");
            assert_eq!(plain.evaluate(&bindings, [("before", Dynamic::UNIT)], 1000).unwrap().bytes(), b"3");
        }
    }
}
