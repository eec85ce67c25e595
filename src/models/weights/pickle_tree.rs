//! The values of a pickle. They are stored in one list and refer to each other by index, so that deep or repeated
//! structures take no additional memory.

/// The index of a value in [`Tree`].
pub(super) type ValueId = usize;

/// The kinds of values.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// None, booleans, floats, bytes: values that do not describe tensors.
    Other,
    Int(i64),
    Text(String),
    /// A class or a function, by module and name.
    Global(String, String),
    Tuple(Vec<ValueId>),
    List(Vec<ValueId>),
    Dict(Vec<(ValueId, ValueId)>),
    /// A function and its arguments; it is never called.
    Call(ValueId, ValueId),
    /// A reference outside the pickle: torch's storages.
    Persistent(ValueId),
}

/// All values of a pickle.
#[derive(Debug)]
pub(super) struct Tree(pub(super) Vec<Value>);

impl Tree {
    pub(super) fn get(&self, id: ValueId) -> &Value {
        self.0.get(id).unwrap_or(&Value::Other)
    }

    pub(super) fn text(&self, id: ValueId) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn size(&self, id: ValueId) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn dict(&self, id: ValueId) -> Option<&[(ValueId, ValueId)]> {
        match self.get(id) {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn global(&self, id: ValueId) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }
}
