//! How families write conversations where their releases come without a template.

/// An encoding that is a program beside the weights. What it does is `runtime::chat`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatEncoding {
    /// DeepSeek's, with calls of tools in its markup language.
    Dsml(Efforts),
}

/// The levels of reasoning a release was trained with, beside none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Efforts {
    /// As it is, and one that a text asks for.
    Two,
    /// As it is, and two that texts ask for: the first text is the other releases' highest.
    Three,
}
