//! HTML that is balanced and escaped by construction.

/// A piece of HTML. Text enters through [`Markup::text`], which escapes it; elements close what they open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Markup(String);

impl Markup {
    /// Escaped text.
    pub(crate) fn text(text: impl AsRef<str>) -> Self {
        Self(escaped(text.as_ref()))
    }

    /// Markup of our own making: a drawn chart, the style sheet.
    pub(crate) fn trusted(html: String) -> Self {
        Self(html)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Markup {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Markup {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl FromIterator<Markup> for Markup {
    fn from_iter<I: IntoIterator<Item = Markup>>(pieces: I) -> Self {
        Self(pieces.into_iter().map(|piece| piece.0).collect())
    }
}

impl<const N: usize> From<[Markup; N]> for Markup {
    fn from(pieces: [Markup; N]) -> Self {
        pieces.into_iter().collect()
    }
}

impl From<Vec<Markup>> for Markup {
    fn from(pieces: Vec<Markup>) -> Self {
        pieces.into_iter().collect()
    }
}

/// `<tag attributes>inside</tag>`.
pub(crate) fn element(tag: &str, attributes: &[(&str, &str)], inside: impl Into<Markup>) -> Markup {
    Markup(format!("<{tag}{}>{}</{tag}>", written(attributes), inside.into().0))
}

/// An element that has no inside: `<img ...>`.
pub(crate) fn void(tag: &str, attributes: &[(&str, &str)]) -> Markup {
    Markup(format!("<{tag}{}>", written(attributes)))
}

/// An element of this text and class.
pub(crate) fn classed(tag: &str, class: &str, text: &str) -> Markup {
    element(tag, &[("class", class)], text)
}

/// An element of this text, or nothing where it is empty.
pub(crate) fn optional(tag: &str, class: &str, text: &str) -> Markup {
    if text.is_empty() { Markup::default() } else { classed(tag, class, text) }
}

fn written(attributes: &[(&str, &str)]) -> String {
    attributes.iter().map(|(name, value)| format!(" {name}=\"{}\"", escaped(value))).collect()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML has no way to write the other control characters, and some readers stop at them.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{element, void};

    #[test]
    fn text_and_attributes_are_escaped() {
        let html = element("p", &[("title", "a\"b'<")], "1 < 2 & \"3\" > '0'\u{0}");
        assert_eq!(
            html.as_str(),
            "<p title=\"a&quot;b&#39;&lt;\">1 &lt; 2 &amp; &quot;3&quot; &gt; &#39;0&#39;\u{fffd}</p>"
        );
        assert_eq!(element("p", &[], [void("br", &[]), "x".into()]).as_str(), "<p><br>x</p>");
    }
}
