//! The part of Python's pickle that `torch.save` writes, as data. Nothing is ever executed: a global that is
//! not tensor data ends the reading with its name.

use std::collections::HashMap;

/// A value of a [`Pickle`], by its number: values may hold one another any number of times and to any depth.
pub(super) type Id = u32;

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    /// None, a bool, a float, a list: nothing that describes a tensor.
    Other,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `module.name`.
    Global(String),
    /// A call of a global with a tuple of arguments.
    Call {
        global: Id,
        arguments: Id,
    },
    /// A reference to a storage, described by a tuple.
    Persistent(Id),
}

/// What was read.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    pub root: Id,
}

impl Pickle {
    pub fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    pub fn tuple(&self, id: Id) -> &[Id] {
        if let Value::Tuple(values) = self.get(id) { values } else { &[] }
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = self.get(id) { Some(text) } else { None }
    }

    pub fn global(&self, id: Id) -> Option<&str> {
        if let Value::Global(name) = self.get(id) { Some(name) } else { None }
    }
}

/// Why a pickle is refused.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// It names this global.
    Unsafe(String),
    /// It is not what `torch.save` writes.
    Malformed(String),
}

/// Values that a pickle may hold at most: a checkpoint has some ten per tensor.
const MAX_VALUES: usize = 4_000_000;

fn is_allowed(global: &str) -> bool {
    matches!(
        global,
        "collections.OrderedDict"
            | "torch._utils._rebuild_tensor_v2"
            | "torch._utils._rebuild_parameter"
            | "torch._tensor._rebuild_from_type_v2"
            | "torch.Size"
            | "torch.Tensor"
            | "torch.nn.parameter.Parameter"
            | "torch.serialization._get_layout"
    ) || global.strip_prefix("torch.").is_some_and(|name| {
        let name = name.strip_prefix("storage.").unwrap_or(name);
        name.ends_with("Storage") && name.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    values: Vec<Value>,
}

/// The value that a pickle stands for.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, Refusal> {
    let (stack, marks, values) = (Vec::new(), Vec::new(), Vec::new());
    let mut machine = Machine { bytes, at: 0, stack, marks, memo: HashMap::new(), values };
    let root = machine.run()?;
    Ok(Pickle { values: machine.values, root })
}

impl Machine<'_> {
    fn malformed(&self, what: &str) -> Refusal {
        Refusal::Malformed(format!("{what} at byte {} of the pickle", self.at))
    }

    fn take(&mut self, n: usize) -> Result<&[u8], Refusal> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, Refusal> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn text(&mut self, len: u64) -> Result<(), Refusal> {
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        match std::str::from_utf8(bytes).map(str::to_owned) {
            Ok(text) => self.push(Value::Text(text)),
            Err(_) => Err(self.malformed("text that is not UTF-8")),
        }
    }

    fn line(&mut self) -> Result<String, Refusal> {
        let rest = &self.bytes[self.at..];
        let len =
            rest.iter().position(|b| *b == b'\n').ok_or_else(|| self.malformed("a line without an end"))?;
        let line = String::from_utf8_lossy(&rest[..len]).into_owned();
        self.at += len + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Result<(), Refusal> {
        if self.values.len() >= MAX_VALUES {
            return Err(self.malformed("more values than any checkpoint has"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err(self.malformed("a mark where a value is expected"));
        }
        self.stack.pop().ok_or_else(|| self.malformed("an empty stack"))
    }

    fn top(&self) -> Result<Id, Refusal> {
        self.stack.last().copied().ok_or_else(|| self.malformed("an empty stack"))
    }

    fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// Everything since the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, Refusal> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(self.malformed("no mark")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
        let global = format!("{module}.{name}");
        if is_allowed(&global) { self.push(Value::Global(global)) } else { Err(Refusal::Unsafe(global)) }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Refusal> {
        let (pairs, rest) = items.as_chunks::<2>();
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.malformed("items for no dict, or a key without a value")),
        }
    }

    fn tuple(&mut self, n: usize) -> Result<(), Refusal> {
        let mut values = Vec::with_capacity(n);
        for _ in 0..n {
            values.push(self.pop()?);
        }
        values.reverse();
        self.push(Value::Tuple(values))
    }

    fn remember(&mut self, id: u32) -> Result<(), Refusal> {
        let value = self.top()?;
        if self.memo.len() >= MAX_VALUES {
            return Err(self.malformed("more memos than any checkpoint has"));
        }
        self.memo.insert(id, value);
        Ok(())
    }

    fn recall(&mut self, id: u32) -> Result<(), Refusal> {
        let value = self.memo.get(&id).copied().ok_or_else(|| self.malformed("an unknown memo"))?;
        if self.stack.len() >= MAX_VALUES {
            return Err(self.malformed("more values than any checkpoint has"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn run(&mut self) -> Result<Id, Refusal> {
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                0x80 => _ = self.take(1)?, // PROTO
                0x95 => _ = self.take(8)?, // FRAME
                b'.' => return self.pop(),
                b'(' if self.marks.len() >= MAX_VALUES => {
                    return Err(self.malformed("more marks than any checkpoint has"));
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => _ = self.pop()?, // POP
                b'N' => self.push(Value::Other)?,
                0x88 | 0x89 => self.push(Value::Other)?,
                b'K' => {
                    let n = self.number::<1>()?;
                    self.push(Value::Int(n as i64))?;
                }
                b'M' => {
                    let n = self.number::<2>()?;
                    self.push(Value::Int(n as i64))?;
                }
                b'J' => {
                    let n = self.number::<4>()? as u32 as i32;
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => {
                    // LONG1: little-endian two's complement.
                    let n = self.number::<1>()? as usize;
                    let bytes = self.take(n)?;
                    if n > 8 {
                        return Err(self.malformed("an integer of more than 64 bits"));
                    }
                    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
                    let mut wide = [fill; 8];
                    wide[..n].copy_from_slice(bytes);
                    self.push(Value::Int(i64::from_le_bytes(wide)))?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other)?;
                }
                b'X' => {
                    let len = self.number::<4>()?;
                    self.text(len)?;
                }
                0x8c => {
                    let len = self.number::<1>()?;
                    self.text(len)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    // STACK_GLOBAL
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (self.value(module), self.value(name))
                    else {
                        return Err(self.malformed("a global without a name"));
                    };
                    let (module, name) = (module.clone(), name.clone());
                    self.global(&module, &name)?;
                }
                b'q' => {
                    let id = self.number::<1>()? as u32;
                    self.remember(id)?;
                }
                b'r' => {
                    let id = self.number::<4>()? as u32;
                    self.remember(id)?;
                }
                0x94 => {
                    let id = self.memo.len() as u32;
                    self.remember(id)?;
                }
                b'h' => {
                    let id = self.number::<1>()? as u32;
                    self.recall(id)?;
                }
                b'j' => {
                    let id = self.number::<4>()? as u32;
                    self.recall(id)?;
                }
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b't' => {
                    let values = self.marked()?;
                    self.push(Value::Tuple(values))?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b']' => self.push(Value::Other)?,
                b'a' => _ = self.pop()?, // lists are never looked into
                b'e' => drop(self.marked()?),
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set_items(&items)?;
                }
                b'Q' => {
                    let parts = self.pop()?;
                    self.push(Value::Persistent(parts))?;
                }
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let value = match self.value(callable) {
                        Value::Global(global) if global == "collections.OrderedDict" => {
                            Value::Dict(Vec::new())
                        }
                        Value::Global(_) => Value::Call { global: callable, arguments },
                        _ => return Err(self.malformed("a call of something that is no global")),
                    };
                    self.push(value)?;
                }
                b'b' => _ = self.pop()?, // BUILD: attributes of a dict or a tensor, no values
                _ => return Err(self.malformed(&format!("the opcode {opcode:#04x}"))),
            }
        }
    }
}
