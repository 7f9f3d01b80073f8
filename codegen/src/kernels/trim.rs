//! Leaves out of a shader what its parameters never reach, so that an artifact
//! carries one function and not all of them.

/// The text with only the taken case of each `switch FUNCTION`, and without
/// functions that nobody calls then. Comments are gone already.
pub(crate) fn trimmed(text: &str, function: u64) -> String {
    let mut blocks = functions(&cases(text, function));
    loop {
        let called = |name: &str, own: usize| {
            let call = format!("{name}(");
            blocks.iter().enumerate().any(|(i, block)| i != own && block.text.contains(&call))
        };
        let unused =
            blocks.iter().enumerate().position(|(i, block)| block.name.as_deref().is_some_and(|name| !called(name, i)));
        match unused {
            Some(i) => drop(blocks.remove(i)),
            None => return blocks.into_iter().map(|block| block.text).collect(),
        }
    }
}

/// Cases of `switch FUNCTION` that are taken; the default stays, WGSL asks for one.
fn cases(text: &str, function: u64) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_switch = false;
    // The line that ends a case which is left out.
    let mut skipped_to: Option<String> = None;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some(end) = &skipped_to {
            if line == end {
                skipped_to = None;
            }
            continue;
        }
        if line.trim() == "switch FUNCTION {" {
            in_switch = true;
        } else if let Some((labels, rest)) = line.trim().strip_prefix("case ").and_then(|case| case.split_once(": {"))
            && in_switch
        {
            let taken = labels.split(", ").any(|label| label.trim_end_matches('u').parse() == Ok(function));
            if !taken {
                if !rest.ends_with('}') {
                    skipped_to = Some(format!("{indent}}}"));
                }
                continue;
            }
        } else if line.trim().starts_with("default:") {
            in_switch = false;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// A function, or whatever stands between functions.
struct Block {
    /// Name of a function that is no entry point.
    name: Option<String>,
    text: String,
}

fn functions(text: &str) -> Vec<Block> {
    let mut blocks = vec![Block { name: None, text: String::new() }];
    let mut is_entry = false;
    let mut inside = false;
    for line in text.lines() {
        let name = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned());
        if name.is_some() && !is_entry {
            blocks.push(Block { name, text: String::new() });
            inside = true;
        }
        if !line.is_empty() {
            is_entry = line.starts_with('@') && !line.contains("var");
        }
        if let Some(block) = blocks.last_mut() {
            block.text.push_str(line);
            block.text.push('\n');
        }
        if inside && line == "}" {
            blocks.push(Block { name: None, text: String::new() });
            inside = false;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "const FUNCTION: u32 = 2u;
fn helper(v: f32) -> f32 {
    return deep(v);
}
fn deep(v: f32) -> f32 {
    return v;
}
fn act(v: f32) -> f32 {
    switch FUNCTION {
        case 1u: { return helper(v); }
        case 2u, 3u: {
            return -v;
        }
        case 4u: {
            return v * v;
        }
        default: { return v; }
    }
}
@compute @workgroup_size(64)
fn main() {
    out[0] = act(x[0]);
}
";

    #[test]
    fn only_what_is_reached_stays() {
        let text = trimmed(TEXT, 3);
        assert!(text.contains("return -v;") && text.contains("default: { return v; }") && text.contains("fn main()"));
        assert!(!text.contains("helper") && !text.contains("deep") && !text.contains("v * v"), "{text}");
        let text = trimmed(TEXT, 1);
        assert!(text.contains("fn helper") && text.contains("fn deep") && !text.contains("-v"), "{text}");
    }

    #[test]
    fn without_a_choice_the_text_stays() {
        let text = "fn f(v: f32) -> f32 {\n    return v;\n}\n@compute\nfn main() {\n    f(1.0);\n}\n";
        assert_eq!(trimmed(text, 0), text);
    }
}
