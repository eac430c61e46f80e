//! A host that does not let processes use the tile unit (AMX): the kernels do without, and say so.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use mamba::DType;
use mamba::backend::{Backend, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cpu::Cpu;
use mamba::cpu::simd::Level;
use mamba::ops::linear::amx;

const CHILD: &str = "NODE_MAMBA_TEST_REFUSED";

/// Makes `arch_prctl(ARCH_REQ_XCOMP_PERM)` fail from now on, as in a sandbox that forbids it.
fn refuse_tiles() {
    const ARCH_REQ_XCOMP_PERM: u32 = 0x1023;
    let load = |offset| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let skip_unless = |value, jf| libc::sock_filter { code: 0x15, jt: 0, jf, k: value };
    let end = |action| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: action };
    let mut filter = [
        load(0), // the call's number
        skip_unless(libc::SYS_arch_prctl as u32, 3),
        load(16), // its first argument
        skip_unless(ARCH_REQ_XCOMP_PERM, 1),
        end(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program outlives the calls, and allows everything but one request.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn without_permission_for_tiles_other_kernels_compute() {
    if std::env::var(CHILD).is_err() {
        let test = "without_permission_for_tiles_other_kernels_compute";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .env_remove("NODE_MAMBA_CPU")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{output}");
        return;
    }
    refuse_tiles();
    assert!(!Level::available().contains(&Level::Amx));
    assert_eq!(Level::notes().iter().any(|note| note.contains("AMX")), amx::is_in_processor());
    let mut cpu = Cpu::new(2).unwrap();
    for dtype in DType::ALL {
        let tensor = Tensor::from_memory("w", vec![40, 64], vec![0.5; 40 * 64]);
        let weight = cpu.weight(&tensor, dtype).unwrap();
        let mut x = cpu.alloc(33 * 64, "x").unwrap();
        x.fill(0.25);
        let mut out = cpu.alloc(33 * 40, "out").unwrap();
        cpu.linear(View::dense(&x, 33, 64), &weight, None, ViewMut::dense(&mut out, 33, 40)).unwrap();
        assert!(out.iter().all(|y| (y - 8.0).abs() < 0.01), "{dtype:?}");
    }
}
