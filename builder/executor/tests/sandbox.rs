//! Real steps: what a process in the sandbox sees, may do, and leaves behind.

#[path = "cases/basics.rs"]
mod basics;
#[path = "support/harness.rs"]
mod harness;
#[path = "cases/isolation.rs"]
mod isolation;
#[path = "support/lab.rs"]
mod lab;
#[path = "cases/lifetime.rs"]
mod lifetime;
#[path = "cases/mounts.rs"]
mod mounts;
#[path = "cases/rootless.rs"]
mod rootless;

use executor::{Fallbacks, Launcher, OverlayCalls};
use harness::Test;
use lab::Lab;

/// Tests by the names of their functions.
macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => { &[$($((stringify!($name), $module::$name)),+),+] };
}

const TESTS: &[Test<Lab>] = tests! {
    basics: exit_codes_and_signals_are_told, a_step_is_killed_on_demand_and_by_letting_go,
        background_processes_die_with_the_step, the_environment_is_the_steps_own,
        users_and_groups_are_those_of_the_image, the_working_directory_is_made_and_entered,
        no_descriptor_serves_as_working_directory, a_program_that_cannot_be_executed_says_why, fifty_steps_at_once,
        use_is_measured, a_user_can_open_the_outputs_again;
    isolation: the_first_process_is_the_steps_own, capabilities_are_dockers, what_tells_about_the_machine_is_hidden,
        devices_are_the_few_harmless_ones, nodes_that_a_step_makes_cannot_be_opened,
        without_network_there_is_loopback_only, a_network_is_used_again_when_nothing_is_left_in_it, names_and_limits_are_the_steps_own, dangerous_system_calls_are_refused, programs_of_32_bits_run_under_the_filter,
        our_own_program_cannot_be_reached_for_writing,
        a_directory_that_leads_out_cannot_be_listed_or_changed, an_insecure_step_has_what_was_lifted, a_terminal_is_the_steps_own;
    mounts: changes_go_to_the_upper_directory, many_layers_join_in_order, a_directory_serves_as_root,
        a_readonly_root_is_readonly_and_its_mounts_are_not, files_of_etc_are_mounted_and_leave_no_trace,
        binds_are_mounted_with_their_attributes, links_lead_nowhere_but_inside, secrets_are_in_memory_with_mode_and_owner,
        views_of_layers_take_writes_that_are_thrown_away, a_memory_file_system_has_its_size_and_mode,
        a_mount_that_cannot_be_is_told, ownership_and_modes_survive, nothing_is_mounted_inside_proc, older_ways_work_too;
    lifetime: killing_rbuild_or_its_launcher_leaves_nothing, memory_is_limited_and_its_want_is_told,
        processes_and_processors_are_limited, limits_that_make_no_sense_are_errors;
    rootless: a_user_with_one_id_has_the_same_sandbox, a_user_with_subordinate_ids_has_all_users_of_an_image;
};

#[allow(clippy::print_stdout, reason = "another test reads it")]
fn main() {
    if std::env::var_os(rootless::ROOTLESS).is_some()
        && std::env::args().next().is_some_and(|name| name != "rbuild-launcher")
    {
        match executor::rootless::enter() {
            Ok(tier) => println!("tier: {tier:?}"),
            Err(error) => {
                println!("SKIPPED: {error} ({:?})", error.hint());
                std::process::exit(1);
            }
        }
    }
    // Asked for by the test that runs others once more in older ways. The launcher itself gets no environment.
    let fallbacks = match std::env::var(mounts::FALLBACKS).as_deref() {
        Ok("strings") => Fallbacks { overlay: Some(OverlayCalls::Strings), ..Fallbacks::default() },
        Ok("classic") => Fallbacks {
            overlay: Some(OverlayCalls::Classic),
            classic_clone: true,
            copied_program: true,
            confined: false,
        },
        _ => Fallbacks::default(),
    };
    let launcher = Launcher::start_with(fallbacks).and_then(|launcher| launcher.check().map(|()| launcher));
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, root, marker] = arguments.as_slice()
        && flag == lifetime::VICTIM
    {
        lifetime::be_the_victim(launcher.as_ref().expect("a launcher"), root, marker);
    }
    harness::main(TESTS, || match launcher {
        Ok(launcher) => Lab::new(launcher),
        Err(error) => Err(error.to_string()),
    })
}
