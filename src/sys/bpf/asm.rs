//! An assembler for eBPF: instructions as calls, jumps by label, and nothing that a loader would have to relocate.
//!
//! ```text
//! Code::new() ─► .function(name) .load(..) .op(..) .jump_if(.., label) .label(name) … ─► finish() ─► Table ─► bpf(2)
//! ```
//!
//! Only what the programs of this project need; <https://www.kernel.org/doc/html/latest/bpf/standardization/> has the
//! instruction set. Jumps are resolved when all is written: a label that is missing or too far is a bug of the program's
//! author, found by the first test that assembles it.

use std::collections::HashMap;
use std::ffi::c_int;

/// One instruction as the kernel reads it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    opcode: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A program as the kernel is handed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The instructions.
    pub instructions: Vec<Instruction>,
    /// Its functions, by where they begin and what they are called. The first begins at 0 and is the program.
    pub functions: Vec<(u32, &'static str)>,
}

/// A register. A call takes its arguments from `R1` on, leaves its result in `R0` and may change all up to `R5`; those
/// from `R6` on stay. `Fp` is the end of the stack, and read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Fp,
}

/// What an operation takes beside its destination: a register, or a number of 32 bits that is extended with its sign.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// A register.
    Of(Register),
    /// A number.
    Is(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Operand {
        Operand::Of(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Operand {
        Operand::Is(number)
    }
}

/// Octets that a load or a store moves.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Width {
    /// One.
    One = 0x10,
    /// Four.
    Four = 0x00,
    /// Eight.
    Eight = 0x18,
}

/// What two values are compared for; all of it without regard to sign.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Test {
    /// They are equal.
    Equal = 0x10,
    /// The first is greater.
    Greater = 0x20,
    /// The first is greater, or they are equal.
    GreaterOrEqual = 0x30,
    /// They differ.
    Differ = 0x50,
    /// The first is less.
    Less = 0xa0,
}

/// An operation on 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Operation {
    /// Sum.
    Add = 0x00,
    /// Difference.
    Subtract = 0x10,
    /// Product, the low half.
    Multiply = 0x20,
    /// Each bit that one of them has.
    Or = 0x40,
    /// Each bit that both have.
    And = 0x50,
    /// Shift to the left.
    ShiftLeft = 0x60,
    /// Shift to the right, zeros coming in.
    ShiftRight = 0x70,
    /// Each bit that exactly one of them has.
    Xor = 0xa0,
    /// The second.
    Move = 0xb0,
}

/// A program that is being written.
#[derive(Debug, Default)]
pub struct Code {
    instructions: Vec<Instruction>,
    functions: Vec<(u32, &'static str)>,
    labels: HashMap<String, usize>,
    /// Jumps whose way is not known yet: the instruction's number and the label.
    jumps: Vec<(usize, String)>,
    /// Likewise references to functions.
    references: Vec<(usize, &'static str)>,
}

const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const LOAD_IMMEDIATE: u8 = 0x18;
/// In an operand's place: the value is in a register.
const FROM_REGISTER: u8 = 0x08;
/// In the source of [`LOAD_IMMEDIATE`]: the immediate is the descriptor of a map.
const IS_MAP: u8 = 1;
/// Likewise: the immediate is the way to a function.
const IS_FUNCTION: u8 = 4;
const ALWAYS: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;

impl Code {
    /// Nothing yet.
    pub fn new() -> Code {
        Code::default()
    }

    fn put(&mut self, opcode: u8, to: Register, from: u8, offset: i16, immediate: i32) -> &mut Code {
        let registers = to as u8 | from << 4;
        self.instructions.push(Instruction { opcode, registers, offset, immediate });
        self
    }

    /// `to = to operation value`.
    pub fn op(&mut self, operation: Operation, to: Register, value: impl Into<Operand>) -> &mut Code {
        let opcode = ALU64 | operation as u8;
        match value.into() {
            Operand::Of(register) => self.put(opcode | FROM_REGISTER, to, register as u8, 0, 0),
            Operand::Is(number) => self.put(opcode, to, 0, 0, number),
        }
    }

    /// `to = value`.
    pub fn set(&mut self, to: Register, value: impl Into<Operand>) -> &mut Code {
        self.op(Operation::Move, to, value)
    }

    /// `to = number`, all 64 bits of it: two instructions in the table, one for the CPU.
    pub fn set_wide(&mut self, to: Register, number: u64) -> &mut Code {
        self.put(LOAD_IMMEDIATE, to, 0, 0, number as i32);
        self.put(0, Register::R0, 0, 0, (number >> 32) as i32)
    }

    /// `to` = the map of this descriptor.
    pub fn set_map(&mut self, to: Register, map: c_int) -> &mut Code {
        self.put(LOAD_IMMEDIATE, to, IS_MAP, 0, map);
        self.put(0, Register::R0, 0, 0, 0)
    }

    /// `to` = what stands at `from + offset`.
    pub fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) -> &mut Code {
        self.put(LOAD | width as u8, to, from as u8, offset, 0)
    }

    /// What stands at `to + offset` = `value`.
    pub fn store(&mut self, width: Width, to: Register, offset: i16, value: Register) -> &mut Code {
        self.put(STORE | width as u8, to, value as u8, offset, 0)
    }

    /// `to` = the function called `name`, for the kernel to call.
    pub fn set_function(&mut self, to: Register, name: &'static str) -> &mut Code {
        self.references.push((self.instructions.len(), name));
        self.put(LOAD_IMMEDIATE, to, IS_FUNCTION, 0, 0);
        self.put(0, Register::R0, 0, 0, 0)
    }

    /// Begins a function. Jumps do not leave it.
    pub fn function(&mut self, name: &'static str) -> &mut Code {
        self.functions.push((self.instructions.len() as u32, name));
        self
    }

    /// Names the next instruction.
    pub fn label(&mut self, name: impl Into<String>) -> &mut Code {
        let before = self.labels.insert(name.into(), self.instructions.len());
        assert!(before.is_none(), "a label stands twice");
        self
    }

    /// Goes on at `label`.
    pub fn jump(&mut self, label: impl Into<String>) -> &mut Code {
        self.jumps.push((self.instructions.len(), label.into()));
        self.put(JUMP | ALWAYS, Register::R0, 0, 0, 0)
    }

    /// Goes on at `label` if `register` and `value` compare so.
    pub fn jump_if(
        &mut self,
        register: Register,
        test: Test,
        value: impl Into<Operand>,
        label: impl Into<String>,
    ) -> &mut Code {
        self.jumps.push((self.instructions.len(), label.into()));
        let opcode = JUMP | test as u8;
        match value.into() {
            Operand::Of(other) => self.put(opcode | FROM_REGISTER, register, other as u8, 0, 0),
            Operand::Is(number) => self.put(opcode, register, 0, 0, number),
        }
    }

    /// Calls a function of the kernel by its number.
    pub fn call(&mut self, function: i32) -> &mut Code {
        self.put(JUMP | CALL, Register::R0, 0, 0, function)
    }

    /// Ends the program; its result is in `R0`.
    pub fn exit(&mut self) -> &mut Code {
        self.put(JUMP | EXIT, Register::R0, 0, 0, 0)
    }

    /// The program.
    pub fn finish(&self) -> Table {
        let mut instructions = self.instructions.clone();
        // Ways are counted from the instruction behind the one that goes them.
        for (at, label) in &self.jumps {
            let to = self.labels.get(label).unwrap_or_else(|| panic!("no label `{label}`"));
            let way = *to as i64 - *at as i64 - 1;
            instructions[*at].offset = i16::try_from(way).expect("a program is shorter than a jump can be");
        }
        for (at, name) in &self.references {
            let start = self.functions.iter().find(|function| function.1 == *name).map(|function| function.0);
            let start = start.unwrap_or_else(|| panic!("no function `{name}`"));
            instructions[*at].immediate = start as i32 - *at as i32 - 1;
        }
        Table { instructions, functions: self.functions.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::Register::{Fp, R0, R1, R2};
    use super::*;

    #[test]
    fn instructions_are_those_of_the_standard() {
        let mut code = Code::new();
        code.function("all").set(R0, 1).op(Operation::Add, R0, R1).load(Width::Four, R2, R1, 16).store(
            Width::Eight,
            Fp,
            -8,
            R2,
        );
        code.set_wide(R2, 0x1122_3344_5566_7788).set_map(R1, 7).call(26).exit();
        let expected: [[u8; 8]; 10] = [
            [0xb7, 0x00, 0, 0, 1, 0, 0, 0],
            [0x0f, 0x10, 0, 0, 0, 0, 0, 0],
            [0x61, 0x12, 16, 0, 0, 0, 0, 0],
            [0x7b, 0x2a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x18, 0x02, 0, 0, 0x88, 0x77, 0x66, 0x55],
            [0x00, 0x00, 0, 0, 0x44, 0x33, 0x22, 0x11],
            [0x18, 0x11, 0, 0, 7, 0, 0, 0],
            [0x00, 0x00, 0, 0, 0, 0, 0, 0],
            [0x85, 0x00, 0, 0, 26, 0, 0, 0],
            [0x95, 0x00, 0, 0, 0, 0, 0, 0],
        ];
        let octets = |one: Instruction| {
            let (offset, immediate) = (one.offset.to_le_bytes(), one.immediate.to_le_bytes());
            let mut octets = [one.opcode, one.registers, offset[0], offset[1], 0, 0, 0, 0];
            octets[4..].copy_from_slice(&immediate);
            octets
        };
        assert_eq!(code.finish().instructions.into_iter().map(octets).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn jumps_go_to_their_labels_in_both_directions() {
        let mut code = Code::new();
        code.label("again").op(Operation::Subtract, R0, 1).jump_if(R0, Test::Equal, 0, "end").jump("again");
        code.label("end").exit();
        let offsets: Vec<i16> = code.finish().instructions.iter().map(|one| one.offset).collect();
        assert_eq!(offsets, [0, 1, -3, 0]);
    }

    #[test]
    fn a_function_is_named_by_the_way_to_it() {
        let mut code = Code::new();
        code.function("first").set_function(R2, "second").exit().function("second").exit();
        let table = code.finish();
        assert_eq!(table.functions, [(0, "first"), (3, "second")]);
        assert_eq!(table.instructions[0].immediate, 2);
    }
}
