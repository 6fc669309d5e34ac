# Docker's default system call filter, as facts: what is listed is allowed, everything else fails with EPERM.
#
#   allow [where]: names                          where is   cap NAME      the step has the capability
#   errno N [where]: names                                   no-cap NAME   it has not
#                                                            arch NAME     the machine's own architecture
#                                                            if CONDITION  of an argument; the last word of where
#
# The first line that names a call and holds decides. A condition is argN == V, argN < V, argN > V, or argN & M == V; it
# sees the lower 32 bits, which is what the kernel sees of these arguments.

allow: accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
allow: clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
allow: clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
allow: epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
allow: execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir
allow: fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork
allow: fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
allow: futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64
allow: getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid
allow: getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
allow: get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32
allow: getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy
allow: io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill
allow: landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
allow: listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
allow: map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
allow: mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
allow: mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
allow: munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
allow: pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv
allow: preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
allow: readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat
allow: rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
allow: rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
allow: sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
allow: sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
allow: sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64
allow: send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
allow: setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
allow: setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address
allow: setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
allow: sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink
allow: symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
allow: timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
allow: timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
allow: uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev

allow: process_vm_readv process_vm_writev ptrace

# All address families but AF_ALG (38) and AF_VSOCK (40).
allow if arg0 < 38: socket
allow if arg0 == 39: socket
allow if arg0 > 40: socket

# Linux, Linux with 32-bit addresses, and their variants without randomised addresses; and the question which it is.
allow if arg0 == 0x0: personality
allow if arg0 == 0x8: personality
allow if arg0 == 0x20000: personality
allow if arg0 == 0x20008: personality
allow if arg0 == 0xffffffff: personality

allow arch aarch64: arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls
allow arch x86_64: arch_prctl modify_ldt

allow cap DAC_READ_SEARCH: open_by_handle_at
allow cap SYS_ADMIN: bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
allow cap SYS_ADMIN: lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
allow cap SYS_ADMIN: quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare

# A new process, but in none of the new namespaces. The flags of clone3 lie in memory, where no filter can read them: with
# "no such call" the C library takes clone instead.
allow no-cap SYS_ADMIN if arg0 & 0x7e020000 == 0: clone
errno 38 no-cap SYS_ADMIN: clone3

allow cap SYS_BOOT: reboot
allow cap SYS_CHROOT: chroot
allow cap SYS_MODULE: delete_module init_module finit_module
allow cap SYS_PACCT: acct
allow cap SYS_PTRACE: kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace
allow cap SYS_RAWIO: iopl ioperm
allow cap SYS_TIME: settimeofday stime clock_settime clock_settime64
allow cap SYS_TTY_CONFIG: vhangup
allow cap SYS_NICE: get_mempolicy mbind set_mempolicy set_mempolicy_home_node
allow cap SYSLOG: syslog
allow cap BPF: bpf
allow cap PERFMON: perf_event_open
