//! Tests again with fewer rights: as an ordinary user with subordinate ids and without, in a container that has lost the rights
//! of root, and in one where there are not even namespaces. The tests are the same; which of them is said by what they need.

/// Each test in each tier: a module of the test's name, and in it one function for each tier.
macro_rules! again {
    ($tiers:tt $($theme:ident { $($test:ident)* })*) => {
        $(mod $theme {
            $(mod $test {
                again! { @ $tiers $theme $test }
            })*
        })*
    };
    (@ { $($name:ident $tier:ident)* } $theme:ident $test:ident) => {
        $(#[test]
        fn $name() {
            $crate::support::Tier::$tier.run($crate::$theme::$test);
        })*
    };
}

/// A root file system and a process.
mod everywhere {
    again! {
        { subordinate_ids SubordinateIds single_id SingleId container Container bare Bare }
        build {
            from_scratch_with_one_static_program
            build_is_the_default_command
            the_dockerfile_comes_from_standard_input
            the_context_comes_as_a_tar_on_standard_input
            build_args_target_and_labels
            stages_are_joined_by_copy_from
            heredocs
            files_of_the_context_belong_to_root
            copy_goes_through_a_symlinked_directory_of_the_base
            dockerignore_keeps_files_out
            add_unpacks_a_local_archive_and_copy_does_not
            onbuild_runs_in_the_build_upon_it
            metadata_instructions_end_in_the_config
        }
        cache {
            a_second_build_runs_nothing
            a_changed_file_is_done_again_from_its_copy_on
            a_step_that_failed_is_run_again
        }
        layers {
            a_layer_holds_what_the_step_changed
            extended_attributes_and_capabilities_survive
            what_the_disk_cannot_hold_comes_out_right
            the_same_context_makes_the_same_layers_in_another_store
        }
        failures {
            a_failing_step_is_shown_with_its_line_its_status_and_its_last_words
            a_step_killed_by_a_signal_says_so
            a_command_that_does_not_exist
        }
        outputs { tar_and_local_give_the_root_file_system several_outputs_of_one_build }
        sandbox {
            the_environment_is_the_images_and_nothing_of_the_callers
            the_host_is_out_of_reach
            what_a_step_leaves_running_ends_with_it
        }
        security {
            nodes_made_by_a_step_or_brought_by_a_base_are_no_devices
            a_writable_bind_leaves_the_context_as_it_is
            links_of_the_context_lead_to_no_file_of_the_host
            archives_stay_where_they_are_unpacked
            an_output_directory_with_links_is_not_left
        }
        attacks {
            a_source_that_is_swapped_meanwhile_leads_nowhere
            the_kernels_ways_out_are_shut
            the_program_itself_stays_as_it_is
        }
    }
}

/// Namespaces and mounts.
mod in_namespaces {
    again! {
        { subordinate_ids SubordinateIds single_id SingleId container Container }
        build { mounts_of_run independent_stages_run_at_the_same_time }
        layers { of_the_mount_points_made_for_a_step_only_the_standard_ones_stay }
        sandbox {
            every_namespace_is_its_own
            network_none_has_no_interface_but_loopback
            no_descriptor_is_inherited
            capabilities_are_the_default_set_and_none_inheritable
            kernel_settings_cannot_be_written_and_secrets_of_the_kernel_not_read
            devices_are_the_standard_ones
            a_working_directory_through_a_descriptor_leads_nowhere
            insecure_mode_and_the_host_network_need_to_be_allowed
        }
        security {
            nothing_of_the_host_is_mounted_above_or_beside_the_root
            mounts_lead_nowhere_but_inside
            secrets_are_in_no_log_layer_config_metadata_or_store
        }
        attacks {
            nothing_leads_from_a_mount_into_a_layer_or_back
            a_step_gets_nothing_out_of_one_that_runs_beside_it
            what_is_taken_away_after_a_step_is_the_steps_own
            a_hostile_image_gets_nothing_out_of_a_shell
        }
        network {
            abstract_sockets_of_the_machine_do_not_exist_in_a_step
            steps_at_the_same_time_have_a_loopback_each
        }
        limits {
            a_profile_of_system_calls_from_a_file_is_the_steps_filter
            a_step_that_takes_too_long_shows_its_processes_and_is_killed
        }
        kills {
            ctrl_c_ends_the_build_and_its_steps
            a_second_ctrl_c_ends_rbuild_at_once_and_all_its_steps
            kill_9_leaves_nothing_and_loses_nothing
        }
    }
}

/// A /proc of which nothing is covered. Where there is only another, steps see the processes of the container.
mod with_proc {
    again! {
        { subordinate_ids SubordinateIds single_id SingleId }
        sandbox { the_step_is_process_one_and_alone }
        attacks { a_step_sees_nothing_of_one_that_runs_beside_it }
    }
}

/// All ids, and control groups.
mod as_root {
    again! {
        { container Container }
        layers { odd_files_survive_into_the_image_and_through_a_load }
        shell { the_step_that_failed_is_opened_as_it_was }
    }
}

/// Users of an image that are not root.
mod with_ids {
    again! {
        { subordinate_ids SubordinateIds container Container }
        build { env_workdir_user_and_shell_reach_the_step_and_the_image copy_follows_the_rules_of_paths_owners_and_modes }
        network { a_step_reaches_the_network_and_not_the_machines_loopback }
        shell { an_image_without_a_shell_gets_one }
        sandbox { the_user_has_the_groups_of_the_image }
        attacks { files_of_the_image_that_are_read_for_a_step_cannot_stop_or_mislead_it }
    }
}
