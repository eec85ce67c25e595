//! Reads pickles of tensors without executing them.
//!
//! A pickle is a program for a small stack machine, and Python imports and calls what it names. Here the machine only
//! builds a tree of values, and stops at a class or function that is not allowed. The operations are those of
//! protocols 2 to 5 (CPython's `Lib/pickletools.py`).

use std::collections::HashMap;

pub(super) use super::pickle_tree::{Tree, Value, ValueId};

/// Limit of values. A tensor takes about thirty, so this is more than fifty thousand tensors.
const MAX_VALUES: usize = 2 << 20;
/// Limit of a module's name or a name in it, in bytes. A pickle could build many long names by reusing one text.
const MAX_NAME_BYTES: usize = 256;

/// Reads a pickle, and returns the tree and its root. `is_allowed` decides which modules and names are allowed.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn read(
    bytes: &[u8],
    is_allowed: impl Fn(&str, &str) -> bool,
) -> Result<(Tree, ValueId), String> {
    let mut machine = Machine {
        bytes,
        tree: Tree(vec![]),
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        is_allowed,
    };
    let root = machine.run()?;
    Ok((machine.tree, root))
}

struct Machine<'a, F> {
    bytes: &'a [u8],
    tree: Tree,
    stack: Vec<ValueId>,
    /// The stack heights at the marks.
    marks: Vec<usize>,
    memo: HashMap<usize, ValueId>,
    is_allowed: F,
}

impl<F: Fn(&str, &str) -> bool> Machine<'_, F> {
    fn run(&mut self) -> Result<ValueId, String> {
        loop {
            // a value takes more memory than the byte that can create it
            if self.tree.0.len() > MAX_VALUES {
                return Err(format!("it has more than {MAX_VALUES} values"));
            }
            let [opcode] = self.take()?;
            match opcode {
                b'.' => return self.pop(),
                // protocol, frame
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push_global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.push_global(module, name)?;
                }
                b'N' | 0x88 | 0x89 => self.push(Value::Other),
                b'K' => {
                    let number = u8::from_le_bytes(self.take()?);
                    self.push(Value::Int(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.take()?);
                    self.push(Value::Int(number.into()));
                }
                b'J' => {
                    let number = i32::from_le_bytes(self.take()?);
                    self.push(Value::Int(number.into()));
                }
                // an integer of any length; one of more than eight bytes cannot be a size
                0x8a => {
                    let [length] = self.take()?;
                    let digits = self.slice(length.into())?;
                    let is_negative = digits.last().is_some_and(|last| *last >= 0x80);
                    let mut number = [if is_negative { 0xff } else { 0 }; 8];
                    let value = match digits.len() {
                        0..=8 => {
                            number[..digits.len()].copy_from_slice(digits);
                            Value::Int(i64::from_le_bytes(number))
                        }
                        _ => Value::Other,
                    };
                    self.push(value);
                }
                b'G' => {
                    self.take::<8>()?;
                    self.push(Value::Other);
                }
                // text, then bytes, each with a length of one, four or eight bytes
                0x8c => self.text::<1>()?,
                b'X' => self.text::<4>()?,
                0x8d => self.text::<8>()?,
                b'U' | b'C' => self.skip::<1>()?,
                b'T' | b'B' => self.skip::<4>()?,
                0x8e | 0x96 => self.skip::<8>()?,
                b')' => self.push(Value::Tuple(vec![])),
                b']' | 0x8f => self.push(Value::List(vec![])),
                b'}' => self.push(Value::Dict(vec![])),
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let items = self.pop_many(count)?;
                    self.push(Value::Tuple(items));
                }
                b'(' => self.marks.push(self.stack.len()),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items));
                }
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items));
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Dict(pairs(&items)));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_to_mark()?;
                    self.extend(&items)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.extend(&items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend(&items)?;
                }
                b'0' => drop(self.pop()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                // REDUCE and NEWOBJ: calls
                b'R' | 0x81 => {
                    let (args, callee) = (self.pop()?, self.pop()?);
                    let is_dict = matches!(
                        self.tree.global(callee),
                        Some(("collections", "OrderedDict" | "defaultdict"))
                    );
                    self.push(match is_dict {
                        true => Value::Dict(vec![]),
                        false => Value::Call(callee, args),
                    });
                }
                // BUILD: an object's attributes
                b'b' => drop(self.pop()?),
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id));
                }
                b'q' => {
                    let [index] = self.take()?;
                    self.memo_put(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.memo_put(index as usize)?;
                }
                0x94 => self.memo_put(self.memo.len())?,
                b'h' => {
                    let [index] = self.take()?;
                    self.memo_get(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.memo_get(index as usize)?;
                }
                other => {
                    return Err(format!("it has the unknown opcode {other:#04x}"));
                }
            }
        }
    }

    fn slice(&mut self, length: usize) -> Result<&[u8], String> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or("it ends unexpectedly")?;
        self.bytes = rest;
        Ok(taken)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.slice(N)?);
        Ok(taken)
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        let line = self.slice(end.ok_or("it ends unexpectedly")? + 1)?;
        Ok(String::from_utf8_lossy(&line[..line.len() - 1]).into_owned())
    }

    fn counted<const N: usize>(&mut self) -> Result<&[u8], String> {
        let mut length = [0; 8];
        length[..N].copy_from_slice(&self.take::<N>()?);
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        self.slice(length)
    }

    fn text<const N: usize>(&mut self) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.counted::<N>()?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn skip<const N: usize>(&mut self) -> Result<(), String> {
        self.counted::<N>()?;
        self.push(Value::Other);
        Ok(())
    }

    fn push_global(&mut self, module: String, name: String) -> Result<(), String> {
        if module.len().max(name.len()) > MAX_NAME_BYTES {
            return Err(format!("it has a name of more than {MAX_NAME_BYTES} bytes"));
        }
        if !(self.is_allowed)(&module, &name) {
            return Err(format!(
                "it refers to {module}.{name}, which is code and not weights; no code was run. Use a file that contains \
                 only weights (torch.save(model.state_dict(), ...)), from a source you trust"
            ));
        }
        self.push(Value::Global(module, name));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.tree.0.len());
        self.tree.0.push(value);
    }

    fn top(&self) -> Result<ValueId, String> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(bottom..).and_then(<[ValueId]>::last);
        top.copied().ok_or_else(|| "stack underflow".to_owned())
    }

    fn pop(&mut self) -> Result<ValueId, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_text(&mut self) -> Result<String, String> {
        let top = self.pop()?;
        let text = self.tree.text(top).map(str::to_owned);
        text.ok_or_else(|| "the name of a class or function is not a string".to_owned())
    }

    /// Pops values, and returns them in the order in which they were pushed.
    fn pop_many(&mut self, count: usize) -> Result<Vec<ValueId>, String> {
        let mut items = (0..count)
            .map(|_| self.pop())
            .collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ValueId>, String> {
        let height = self.marks.pop().ok_or("a mark is missing on the stack")?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    /// Appends items to the list, or keys and values to the dictionary, on top of the stack.
    fn extend(&mut self, items: &[ValueId]) -> Result<(), String> {
        let top = self.top()?;
        match self.tree.0.get_mut(top) {
            Some(Value::List(list)) => list.extend(items),
            Some(Value::Dict(dict)) => dict.extend(pairs(items)),
            // contents of an object that is not created
            Some(Value::Call(..)) => {}
            _ => {
                return Err(
                    "items are added to a value that is neither a list nor a dictionary".to_owned(),
                );
            }
        }
        Ok(())
    }

    fn memo_put(&mut self, index: usize) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn memo_get(&mut self, index: usize) -> Result<(), String> {
        let value = self
            .memo
            .get(&index)
            .ok_or("a memo entry is read that was never written")?;
        self.stack.push(*value);
        Ok(())
    }
}

/// Pairs of consecutive keys and values; an odd last item is ignored.
fn pairs(items: &[ValueId]) -> Vec<(ValueId, ValueId)> {
    items
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<(Tree, ValueId), String> {
        read(bytes, |module, _| module == "collections")
    }

    #[test]
    fn dictionaries_of_protocols_2_and_4_are_read() {
        // pickle.dumps(OrderedDict(a=(1, -2, [3])), protocol=2) and protocol=4
        let two = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01X\x01\x00\x00\x00aq\x02K\x01J\xfe\xff\xff\xff]q\x03K\x03a\x87q\x04s.";
        let four = b"\x80\x04\x95\x36\x00\x00\x00\x00\x00\x00\x00\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\x8c\x01a\x94K\x01J\xfe\xff\xff\xff]\x94K\x03a\x87\x94s.";
        for bytes in [two.as_slice(), four] {
            let (tree, root) = read_all(bytes).unwrap();
            let [(key, value)] = tree.dict(root).unwrap() else {
                panic!("{tree:?}");
            };
            assert_eq!(tree.text(*key), Some("a"));
            let items = tree.tuple(*value).unwrap();
            assert_eq!(tree.size(items[0]), Some(1));
            assert_eq!(tree.size(items[1]), None);
            assert!(matches!(tree.get(items[2]), Value::List(list) if list.len() == 1));
        }
    }

    #[test]
    fn an_invalid_pickle_is_an_error() {
        for bytes in [
            b"".as_slice(),
            b"\x80\x02",
            b"\x80\x02R.",
            b"\x80\x02K\x01s.",
            b"\x80\x02K\x01K\x02a.",
            b"\x80\x02h\x00.",
            b"\x80\x02t.",
            b"(0.",
            b"\x80\x02X\xff\xff\xff\xffa.",
            b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
            b"S'text'\n.",
        ] {
            assert!(read_all(bytes).is_err(), "{bytes:?}");
        }
        let code = read_all(b"\x80\x02cposix\nsystem\n.").unwrap_err();
        assert!(code.contains("posix.system"), "{code}");
    }

    #[test]
    fn deep_and_repeated_structures_take_little_memory() {
        let deep = [&b")"[..], &[0x85; 300_000], b"."].concat();
        assert!(read_all(&deep).is_ok());
        let mut doubled = b")q\x00".to_vec();
        for index in 0..40u8 {
            doubled.extend([b'h', index, b'h', index, 0x86, b'q', index + 1]);
        }
        doubled.push(b'.');
        let (tree, _) = read_all(&doubled).unwrap();
        assert_eq!(tree.0.len(), 41);
    }

    #[test]
    fn the_number_of_values_is_limited() {
        let many = [&b"("[..], &vec![b'N'; 5 << 20], b"t."].concat();
        let error = read_all(&many).unwrap_err();
        assert!(error.contains("values"), "{error}");
    }

    #[test]
    fn the_length_of_a_name_is_limited() {
        // a text that is stored in the memo, then a class with that name
        let text = "x".repeat(1 << 10);
        let length = (text.len() as u32).to_le_bytes();
        let class = [
            b"X\x0b\0\0\0collectionsX",
            &length[..],
            text.as_bytes(),
            b"\x93.",
        ]
        .concat();
        let error = read_all(&class).unwrap_err();
        assert!(error.contains("a name of more than"), "{error}");
    }
}
