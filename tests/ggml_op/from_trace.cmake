# Records a few steps of a random model with the plugin on one thread, with the fastest kernel set and with scalar,
# lets the reader judge them and feeds them through the op. EMULATOR: what runs programs of another machine, or empty.
file(REMOVE_RECURSE "${WORK_DIR}")
file(MAKE_DIRECTORY "${WORK_DIR}")
string(REPEAT "pack my box with five dozen liquor jugs " 12 prompt)
foreach(isa IN ITEMS "" scalar)
    set(model "${WORK_DIR}/model.gguf")
    set(trace "${WORK_DIR}/trace-${isa}.gguf")
    execute_process(COMMAND ${EMULATOR} "${MAKE_MODEL}" --arch llama --out "${model}" COMMAND_ERROR_IS_FATAL ANY)
    set(ENV{MIXED_KV_ISA} "${isa}")
    execute_process(
        COMMAND ${EMULATOR} "${MONITOR}" -m "${model}" -p "${prompt}" -t 1 -fa on -n 3 --seed 1 -q --mixed-kv-cache
            --kv-window 64 --kv-sinks 4 --save-gguf "${trace}"
        COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${EMULATOR} "${READER}" -i "${trace}" -q COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${EMULATOR} "${OP_TEST}" --from-trace "${trace}" --require-exact --require-cold
        COMMAND_ERROR_IS_FATAL ANY)
endforeach()
