//! Literals that do not mean what they seem to: they are refused where an expression is compiled, because the language has made something else of them when it
//! runs.

use std::cell::RefCell;

use rhai::{Position, Token};

/// What the tokens of one expression have said so far.
#[derive(Debug, Default)]
struct Reader {
    open: Vec<Bracket>,
    /// Depths at which the braces of a `switch` are to open.
    switches: Vec<usize>,
    refused: Option<(String, Position)>,
}

/// What a bracket that is open encloses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    /// The cases of a `switch`, of which a label is being read.
    Label,
    /// The same, and the condition or the result of a case is being read.
    Case,
    Other,
}

thread_local! {
    // An expression is compiled on one thread, which does nothing else meanwhile.
    static READER: RefCell<Reader> = RefCell::default();
}

/// Begins an expression.
pub(super) fn begin() {
    READER.set(Reader::default());
}

/// Ends it: the first literal that is refused, and where it is.
pub(super) fn end() -> Option<(String, Position)> {
    READER.take().refused
}

/// Takes note of one token.
pub(super) fn read(token: &Token, position: Position) {
    READER.with_borrow_mut(|reader| reader.read(token, position));
}

impl Reader {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the enum is not ours and has a hundred kinds")]
    fn read(&mut self, token: &Token, position: Position) {
        let in_label = self.open.iter().rfind(|b| **b != Bracket::Other) == Some(&Bracket::Label);
        match token {
            Token::Switch => self.switches.push(self.open.len()),
            Token::LeftBrace if self.switches.last() == Some(&self.open.len()) => {
                self.switches.pop();
                self.open.push(Bracket::Label);
            }
            Token::LeftBracket | Token::MapStart if in_label => {
                let what = "found a list or an object as a case of switch, which nothing ever equals";
                self.refuse(format!("{what}: write if x == […] {{ … }} else {{ … }}"), position);
                self.open.push(Bracket::Other);
            }
            Token::LeftBrace
            | Token::LeftParen
            | Token::LeftBracket
            | Token::QuestionBracket
            | Token::MapStart => self.open.push(Bracket::Other),
            Token::RightBrace | Token::RightParen | Token::RightBracket => {
                self.open.pop();
            }
            Token::Comma if self.open.last() == Some(&Bracket::Case) => self.enter(Bracket::Label),
            Token::DoubleArrow | Token::If if self.open.last() == Some(&Bracket::Label) => {
                self.enter(Bracket::Case);
            }
            Token::IntegerConstant(number) if in_label => self.refuse_label(&number.to_string(), position),
            Token::FloatConstant(float) if in_label => self.refuse_label(&float.1, position),
            Token::FloatConstant(float) => {
                let (value, text) = (*float.0, &float.1);
                if value.is_infinite() {
                    self.refuse(format!("the number {text} is beyond a 64-bit float"), position);
                } else if !text.contains(['.', 'e', 'E']) {
                    let message = format!(
                        "the number {text} is beyond a 64-bit integer: write {text}.0 where the float next to it is meant"
                    );
                    self.refuse(message, position);
                }
            }
            _ => {}
        }
    }

    fn enter(&mut self, bracket: Bracket) {
        if let Some(top) = self.open.last_mut() {
            *top = bracket;
        }
    }

    fn refuse_label(&mut self, number: &str, position: Position) {
        let message = format!(
            "found the number {number} as a case of switch, where 1 and 1.0 are two cases: write if x == {number} {{ … }} else {{ … }}"
        );
        self.refuse(message, position);
    }

    fn refuse(&mut self, message: String, position: Position) {
        self.refused.get_or_insert((message, position));
    }
}
