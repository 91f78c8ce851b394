//! JSON as block-style YAML. Every string is written with JSON's quotes, which YAML 1.2 reads as the same string, so
//! that nothing (`no`, `1e3`, a date) changes its type: a library for this would be larger than what it does here.
use serde_json::Value;

/// The document.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                indent(depth, text);
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                nested(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(depth, text);
                text.push('-');
                nested(item, depth, text);
            }
        }
        scalar => {
            indent(depth, text);
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            text.push('\n');
            block(value, depth + 1, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(value, depth + 1, text);
        }
        scalar => {
            text.push(' ');
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

fn indent(depth: usize, text: &mut String) {
    text.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_and_lists_are_blocks_and_strings_keep_their_quotes() {
        let value = json!({"a": [{"b": "no", "c": [1, 2]}, null], "d": {}, "e": "x: \"y\"\n"});
        let text = "\"a\":\n  -\n    \"b\": \"no\"\n    \"c\":\n      - 1\n      - 2\n  - null\n\"d\": {}\n\"e\": \"x: \\\"y\\\"\\n\"\n";
        assert_eq!(write(&value), text);
    }
}
