//! What a lost GPU ends, and what it does not. A program of its own, since the driver lets a process whose kernel failed use
//! the GPU no more.

mod common;

use std::ffi::{CStr, c_char, c_void};
use std::mem::transmute;
use std::ptr::null_mut;

use common::Truth;
use common::cuda::{ask, generated, greedy, load};
use common::model::Runner;
use mamba::DType;
use mamba::cuda::Cuda;
use mamba::engine::{Device, Input, Task};

/// Runs a kernel that writes to address 0, in the context of this thread, to its end.
fn fault() {
    const KERNEL: &CStr = c".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry fault() {\n\
        .reg .b64 %zero;\n mov.b64 %zero, 0;\n st.global.b32 [%zero], 1;\n ret;\n}";
    type Launch = unsafe extern "C" fn(
        *mut c_void,
        u32,
        u32,
        u32,
        u32,
        u32,
        u32,
        u32,
        *mut c_void,
        *mut c_void,
        *mut c_void,
    ) -> i32;
    // SAFETY: the driver's functions with their own signatures; the kernel has no arguments.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        let symbol = |name: &CStr| {
            let symbol = libc::dlsym(driver, name.as_ptr());
            assert!(!symbol.is_null(), "{name:?}");
            symbol
        };
        let load: unsafe extern "C" fn(*mut *mut c_void, *const c_char) -> i32 =
            transmute(symbol(c"cuModuleLoadData"));
        let function: unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> i32 =
            transmute(symbol(c"cuModuleGetFunction"));
        let launch: Launch = transmute(symbol(c"cuLaunchKernel"));
        let (mut module, mut kernel) = (null_mut(), null_mut());
        assert_eq!(load(&raw mut module, KERNEL.as_ptr()), 0);
        assert_eq!(function(&raw mut kernel, module, c"fault".as_ptr()), 0);
        let synchronize: unsafe extern "C" fn() -> i32 = transmute(symbol(c"cuCtxSynchronize"));
        assert_eq!(launch(kernel, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut()), 0);
        assert_ne!(synchronize(), 0);
    }
}

#[test]
fn requests_end_with_a_typed_error_and_the_cpu_goes_on() {
    let prompt = || Input::Ids(Truth::novels().ids("prompt1.ids"));
    let other = load(Device::Cuda, DType::F32);
    let task = || Task::Generate { prompt: prompt(), options: greedy(8) };
    assert_eq!(generated(ask(&other, task())), Truth::novels().ids("prompt1.greedy")[..8]);

    let mut lost = Runner::new(Cuda::new(DType::F32).unwrap(), DType::F32);
    fault();
    let error = lost.slots.read(&mut lost.backend, 0).err().unwrap();
    assert_eq!(error.code(), "DEVICE_LOST", "{error}");
    println!("{error}");
    let again = lost.slots.read(&mut lost.backend, 0).err().unwrap();
    assert_eq!(again.code(), "DEVICE_LOST", "{again}");
    drop(lost);

    for _ in 0..2 {
        let error = ask(&other, task()).err().unwrap();
        assert_eq!(error.code(), "DEVICE_LOST", "{error}");
    }
    assert_eq!(Cuda::new(DType::F32).err().unwrap().code(), "DEVICE_LOST");
    drop(other);
    // `auto` takes what is left.
    let cpu = load(Device::Auto, DType::F32);
    assert_eq!(cpu.info().device, "cpu");
    assert_eq!(generated(ask(&cpu, task())), Truth::novels().ids("prompt1.greedy")[..8]);
}
