"""The GPU session: all checks and measurements that need a GPU, as one command with a time limit.

__main__      run the stages one after another and print the table
run_stage     run one stage in a child process that is killed at its deadline (parent)
stage         run the measurements of one stage (child)
setup         the device, the sizes and the files of a session
measurement   the unit of work within a stage
results       the file of results, which is written line by line
table         the table at the end
interpreter   a check of Triton's interpreter, for rehearsals

ceilings, kernels, model, gpu_tests, performance, end_to_end, profiler      the stages
"""
