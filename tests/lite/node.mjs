// pytest in Pyodide, in node. `tests/lite/test_node.py` runs it:
//     node node.mjs URL_OF_PYODIDE '{"/place/in/pyodide": "/folder/here", ...}' ARGUMENT_OF_PYTEST ...
// It ends with pytest's exit status.
const [url, mounts, ...args] = process.argv.slice(2);
try {
    process.exit(await main());
} catch (error) {
    console.error(error.stack); // without the line of the script that node would show: it has a megabyte
    process.exit(3);
}

async function main() {
    const { loadPyodide } = await import(url);
    const pyodide = await loadPyodide({ env: { HOME: "/" } });
    for (const [place, folder] of Object.entries(JSON.parse(mounts))) {
        pyodide.FS.mkdirTree(place);
        pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root: folder }, place);
    }
    pyodide.globals.set("args", pyodide.toPy(args));
    // In a task: only there JavaScript waits for code that stands still.
    return await pyodide.runPythonAsync(`
import os
import sys

sys.dont_write_bytecode = True
sys.path[:0] = ["/project", "/project/src", "/packages"]
os.chdir("/project")

import pytest

int(pytest.main(args))
`);
}
